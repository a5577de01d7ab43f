//! How a listing is shown to a pod.

pub mod linkfarm;
