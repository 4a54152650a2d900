//! stub
use super::catalogue::Catalogue;
use crate::state::NodeState;
/// stub
pub struct Ownership;
impl Ownership {
    /// stub
    pub fn of(_: &Catalogue, _: &NodeState) -> Self {
        Ownership
    }
}
