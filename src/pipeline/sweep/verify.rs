//! `verify=true`: compares the ready rows with the objects in the storage.

use std::collections::HashMap;

use futures_util::{StreamExt as _, stream};

use super::{Sweep, SweepError, SweepOptions};
use crate::domain::failure::Failure;
use crate::domain::ids::VideoKey;
use crate::domain::report::ServiceError;
use crate::services::storage::ObjectPath;

/// The maximum number of concurrent requests to the storage.
const VERIFY_AT_ONCE: usize = 8;

/// The number of consecutive failures after which the comparison is aborted.
const FAILURES_IN_A_ROW_MAX: usize = 8;

impl Sweep {
    /// The videos whose object is missing or has another size, with the reason. Also returns the errors of
    /// the storage, one per code.
    pub(super) async fn verify(
        &self,
        options: &SweepOptions,
    ) -> Result<(HashMap<VideoKey, &'static str>, Vec<ServiceError>), SweepError> {
        let objects = self.db.ready_objects().await?.into_iter();
        let objects = objects.filter(|object| options.includes(object.key));
        let mut results = stream::iter(objects)
            .map(async |object| {
                let Some(path) = ObjectPath::from_stored(&object.bucket, &object.path) else {
                    return Ok(Some((object.key, "The storage path is not recognized")));
                };
                let info = self.store.info(&path).await?;
                Ok::<_, Failure>(match (info, object.size) {
                    (None, _) => Some((object.key, "The object is missing from storage")),
                    (Some(info), Some(size)) if info.size != size => {
                        Some((object.key, "The stored object has an unexpected size"))
                    }
                    _ => None,
                })
            })
            .buffer_unordered(VERIFY_AT_ONCE);
        let (mut drifted, mut errors) = (HashMap::new(), Vec::new());
        let mut failures_in_a_row = 0;
        while failures_in_a_row < FAILURES_IN_A_ROW_MAX
            && let Some(result) = results.next().await
        {
            match result {
                Ok(found) => {
                    failures_in_a_row = 0;
                    drifted.extend(found);
                }
                Err(failure) => {
                    failures_in_a_row += 1;
                    let error = ServiceError {
                        service: "storage",
                        code: failure.code.as_str(),
                    };
                    if !errors.contains(&error) {
                        errors.push(error);
                    }
                }
            }
        }
        Ok((drifted, errors))
    }
}
