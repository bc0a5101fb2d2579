//! Do those who do the work answer? For `/healthz`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

/// Somebody who can be asked whether they live, and all on whom they depend.
#[async_trait]
pub trait Ping: Send + Sync {
    /// An answer that takes longer than a moment is none.
    async fn ping(&self) -> bool;
}

/// Those who are at work now, for whoever wants to know whether they live.
#[derive(Clone, Default)]
pub struct Health(Arc<Mutex<Vec<Arc<dyn Ping>>>>);

impl Health {
    /// Until the registration is dropped.
    pub fn register(&self, who: Arc<dyn Ping>) -> Registration {
        self.registered().push(who.clone());
        Registration { health: self.clone(), who }
    }

    /// Does each of them answer? True as well while nobody is at work.
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
