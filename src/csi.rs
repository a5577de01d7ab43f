//! The gRPC edge: CSI requests in, CSI answers out. The only place that knows tonic.
//!
//! Handlers parse, call the node or the controller, and map errors to codes by one table (`status`).
//! Nothing here decides anything about volumes.
//!
//! Source: CSI v1.13.0 spec.md, "RPC Interface".

mod answer;
mod capability;
mod controller;
mod identity;
mod node;
pub mod proto;
mod request;
mod server;
mod status;

pub use self::{
    controller::ControllerService,
    identity::IdentityService,
    node::{NodeService, Registration},
    server::{ServeError, Service, Socket, serve},
};
