//! stub
use crate::domain::agent::Reading;
use std::collections::HashMap;
pub struct Agent;
pub struct ServiceError {
    pub service: &'static str,
    pub code: &'static str,
}
pub struct Probed {
    pub readings: HashMap<String, Reading>,
    pub errors: Vec<ServiceError>,
}
impl Agent {
    pub async fn probe(&self, _c: &[String]) -> Probed {
        Probed {
            readings: HashMap::new(),
            errors: vec![],
        }
    }
}
