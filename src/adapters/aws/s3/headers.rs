//! Reads a response header that the SDK does not expose.

use std::sync::{Arc, Mutex, PoisonError};

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextRef;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

/// Remembers a header of the last answer.
#[derive(Debug, Clone)]
pub(super) struct Header {
    name: &'static str,
    value: Arc<Mutex<Option<String>>>,
}

impl Header {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, value: Arc::default() }
    }

    pub(super) fn value(&self) -> Option<String> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Intercept for Header {
    fn name(&self) -> &'static str {
        "Header"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let value = context.response().headers().get(self.name).map(str::to_owned);
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }
}
