//! weir
pub mod bucket;
pub mod clock;
pub mod decision;
pub mod proto;
pub mod rules;
pub mod store;
