//! How a listing is shown to a pod.

pub mod fuse;
pub mod linkfarm;
