//! stub
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    Generating,
    Finished,
    Failed { reason: String },
    Unknown { reason: String },
}
impl Reading {
    pub fn as_str(&self) -> &'static str {
        "unknown"
    }
}
