//! Places where a test may stop, crash or fail the program on purpose. In production none is armed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::domain::failure::{Code, Failure};

/// What happens when an armed place is reached.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The process ends at once, as if killed.
    Abort,
    /// The step fails with this code.
    Fail(Code),
    /// The step waits until the notify is notified.
    Pause(Arc<Notify>),
    /// The step never goes on: the process is there to be killed.
    Hang,
    /// The step panics.
    Panic,
}

/// The armed places, by name.
#[derive(Clone, Debug, Default)]
pub struct FailPoints {
    armed: Arc<Mutex<HashMap<String, Fault>>>,
}

impl FailPoints {
    /// Arms a place; it stays armed until [`FailPoints::disarm`].
    pub fn arm(&self, name: &str, fault: Fault) {
        self.armed
            .lock()
            .expect("no panic while held")
            .insert(name.to_owned(), fault);
    }

    /// Takes a fault away again.
    pub fn disarm(&self, name: &str) {
        self.armed.lock().expect("no panic while held").remove(name);
    }

    /// Passes through, unless a test armed this place.
    pub async fn at(&self, name: &str) -> Result<(), Failure> {
        let fault = {
            let armed = self.armed.lock().expect("no panic while held");
            if armed.is_empty() {
                return Ok(());
            }
            armed.get(name).cloned()
        };
        match fault {
            None => Ok(()),
            Some(Fault::Abort) => std::process::abort(),
            Some(Fault::Fail(code)) => Err(Failure::new(code, format!("fail point {name}"))),
            Some(Fault::Pause(notify)) => {
                notify.notified().await;
                Ok(())
            }
            Some(Fault::Hang) => {
                tracing::warn!(fail_point = name, "hanging");
                std::future::pending().await
            }
            Some(Fault::Panic) => panic!("fail point {name}"),
        }
    }
}
