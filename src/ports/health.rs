//! The state behind `/healthz`: do all supervisors answer?

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

/// A component that can be asked whether it and its dependencies are alive.
#[async_trait]
pub trait Ping: Send + Sync {
    /// Is it alive? False without a quick answer.
    async fn ping(&self) -> bool;
}

/// The components that run now.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Vec<Arc<dyn Ping>>>>);

impl Health {
    /// Registers a component until the registration is dropped.
    pub fn register(&self, who: Arc<dyn Ping>) -> Registration {
        self.registered().push(who.clone());
        Registration { health: self.clone(), who }
    }

    /// Does each of them answer? True if none is registered.
    pub async fn is_healthy(&self) -> bool {
        let registered = self.registered().clone();
        for who in registered {
            if !who.ping().await {
                return false;
            }
        }
        true
    }

    fn registered(&self) -> MutexGuard<'_, Vec<Arc<dyn Ping>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Health::register`].
pub struct Registration {
    health: Health,
    who: Arc<dyn Ping>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.health.registered().retain(|other| !Arc::ptr_eq(other, &self.who));
    }
}
