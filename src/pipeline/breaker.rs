//! A service that takes calls and does not answer them must not hold every worker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::domain::failure::{Code, Failure};

/// A failure that took longer than this was waited for; a quick one costs nobody anything.
const SLOW_FAILURE: Duration = Duration::from_secs(1);

/// Stands before one service. Once a call was waited for in vain, one at a time goes on trying, and
/// whoever comes meanwhile fails at once, until a call is answered again.
#[derive(Debug)]
pub struct Breaker {
    code: Code,
    message: &'static str,
    slow: Duration,
    silent: AtomicBool,
    trying: Mutex<()>,
}

impl Breaker {
    /// Of the service whose outages have this code; `message`: for those who fail at once.
    pub fn new(code: Code, message: &'static str) -> Self {
        Self {
            code,
            message,
            slow: SLOW_FAILURE,
            silent: AtomicBool::new(false),
            trying: Mutex::new(()),
        }
    }

    /// Makes the call, if now is a time to make one.
    ///
    /// # Errors
    /// The call's, or the service's code while another call finds out whether it answers again.
    pub async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let _turn = match self.silent.load(Ordering::Relaxed) {
            false => None,
            true => {
                let turn = self.trying.try_lock();
                Some(turn.map_err(|_| Failure::new(self.code, self.message))?)
            }
        };
        let began = Instant::now();
        let result = call.await;
        let silent = matches!(&result, Err(failure) if failure.code == self.code)
            && began.elapsed() >= self.slow;
        self.silent.store(silent, Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_millis(20);

    async fn waited_for() -> Result<(), Failure> {
        tokio::time::sleep(SLOW).await;
        Err(Failure::new(Code::StorageUnavailable, "no answer"))
    }

    #[tokio::test]
    async fn one_at_a_time_finds_out_whether_it_answers_again() {
        let breaker = Breaker {
            slow: SLOW,
            ..Breaker::new(Code::StorageUnavailable, "at once")
        };
        let message = |result: Result<(), Failure>| result.unwrap_err().message;
        // The first ones do not know.
        let (a, b) = tokio::join!(breaker.call(waited_for()), breaker.call(waited_for()));
        assert_eq!(
            (message(a), message(b)),
            ("no answer".into(), "no answer".into())
        );
        let (a, b) = tokio::join!(breaker.call(waited_for()), breaker.call(async { Ok(()) }));
        assert_eq!(
            (message(a), message(b)),
            ("no answer".into(), "at once".into())
        );
        assert_eq!(breaker.call(async { Ok(()) }).await, Ok(()));
        let (a, b) = tokio::join!(breaker.call(waited_for()), breaker.call(async { Ok(()) }));
        assert_eq!((message(a), b), ("no answer".into(), Ok(())));
    }
}
