//! What the tests share.

pub mod aws;
pub mod bucket;
pub mod cloud;
pub mod http;
pub mod journey;
pub mod logs;
pub mod records;
pub mod servers;
#[path = "../../core/tests/support.rs"]
mod values;

pub use values::*;
