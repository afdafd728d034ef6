//! weir
pub mod bucket;
pub mod clock;
pub mod decision;
pub mod store;
