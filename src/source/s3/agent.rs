//! The pod's name in the User-Agent, so that a bucket's access log says who read.
//!
//! Clients are shared by pods, and the SDK's own way to change one request (an operation's config
//! override) costs as much as signing it. So the client has an interceptor for all requests, and
//! the name is there while the request is polled.

use std::{future::Future, sync::Arc};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        interceptors::{Intercept, context::BeforeTransmitInterceptorContextMut},
        runtime_components::RuntimeComponents,
    },
};
use aws_smithy_types::config_bag::ConfigBag;

tokio::task_local! {
    static AGENT: Arc<str>;
}

/// Runs a request with `agent` before the SDK's own words in its User-Agent.
pub(super) fn named<F: Future>(agent: Arc<str>, request: F) -> impl Future<Output = F::Output> {
    AGENT.scope(agent, request)
}

/// Writes the header. It is not part of the signature.
#[derive(Debug)]
pub(super) struct UserAgent;

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for UserAgent {
    fn name(&self) -> &'static str {
        "UserAgent"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Ok(agent) = AGENT.try_with(Arc::clone) else { return Ok(()) };
        let headers = context.request_mut().headers_mut();
        let agent = format!("{agent} {}", headers.get("user-agent").unwrap_or_default());
        headers.insert("user-agent", agent);
        Ok(())
    }
}
