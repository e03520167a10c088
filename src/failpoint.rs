//! Points at which tests stop, crash or fail the program on purpose.
//!
//! Nothing can be armed without the cargo feature `fail-points`, which release builds lack.

#[cfg(feature = "fail-points")]
pub use armed::{FailPoints, Fault};

#[cfg(not(feature = "fail-points"))]
use crate::domain::failure::Failure;

/// No fail points: this build lacks the feature.
#[cfg(not(feature = "fail-points"))]
#[derive(Clone, Debug, Default)]
pub struct FailPoints;

#[cfg(not(feature = "fail-points"))]
impl FailPoints {
    /// Does nothing.
    #[inline]
    pub async fn at(&self, _name: &str) -> Result<(), Failure> {
        Ok(())
    }
}

#[cfg(feature = "fail-points")]
mod armed {
    use std::collections::HashMap;
    use std::str::FromStr;
    use std::sync::{Arc, Mutex, MutexGuard};

    use tokio::sync::Notify;

    use crate::domain::failure::{Code, Failure};

    /// What happens when an armed point is reached.
    #[derive(Clone, Debug)]
    pub enum Fault {
        /// The process aborts at once, as if killed.
        Abort,
        /// The step fails with this code.
        Fail(Code),
        /// The step waits until the notify is notified.
        Pause(Arc<Notify>),
        /// The step never continues: the process is there to be killed.
        Hang,
        /// The step panics.
        Panic,
    }

    /// The armed points, by name. Clones share them.
    #[derive(Clone, Debug, Default)]
    pub struct FailPoints(Arc<Mutex<HashMap<String, Fault>>>);

    impl FailPoints {
        fn armed(&self) -> MutexGuard<'_, HashMap<String, Fault>> {
            self.0.lock().expect("no panic while held")
        }

        /// Arms a point; it stays armed until [`FailPoints::disarm`].
        pub fn arm(&self, name: &str, fault: Fault) {
            self.armed().insert(name.to_owned(), fault);
        }

        /// Disarms a point.
        pub fn disarm(&self, name: &str) {
            self.armed().remove(name);
        }

        /// Passes through, unless this point is armed.
        pub async fn at(&self, name: &str) -> Result<(), Failure> {
            let fault = self.armed().get(name).cloned();
            match fault {
                None => Ok(()),
                Some(Fault::Abort) => std::process::abort(),
                Some(Fault::Fail(code)) => Err(Failure::new(code, format!("fail point {name}"))),
                Some(Fault::Pause(notify)) => {
                    notify.notified().await;
                    Ok(())
                }
                Some(Fault::Hang) => {
                    tracing::warn!(fail_point = name, "simulating a hung task");
                    std::future::pending().await
                }
                Some(Fault::Panic) => panic!("fail point {name}"),
            }
        }
    }

    /// `name=abort,name=hang,name=panic`, as in `FAIL_POINTS`.
    impl FromStr for FailPoints {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let points = Self::default();
            for point in text.split(',') {
                let (name, fault) = match point.split_once('=') {
                    Some((name, "abort")) => (name, Fault::Abort),
                    Some((name, "hang")) => (name, Fault::Hang),
                    Some((name, "panic")) => (name, Fault::Panic),
                    _ => {
                        return Err("must be in the form `name=fault,…`, where each fault is abort, hang or panic".to_owned());
                    }
                };
                points.arm(name, fault);
            }
            Ok(points)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::FailPoints;

        #[test]
        fn fail_points_are_pairs() {
            let points: FailPoints = "stored=abort,claimed=hang".parse().unwrap();
            let armed = format!("{points:?}");
            assert!(armed.contains(r#""stored": Abort"#), "{armed}");
            assert!(armed.contains(r#""claimed": Hang"#), "{armed}");
            for wrong in ["", "stored", "stored=", "stored=flee", "a=hang,"] {
                assert!(wrong.parse::<FailPoints>().is_err(), "{wrong:?}");
            }
        }
    }
}
