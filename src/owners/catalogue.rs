//! stub
use crate::error::Result;
/// stub
pub struct Catalogue;
impl Catalogue {
    /// stub
    pub fn builtin() -> Result<Self> {
        Ok(Catalogue)
    }
}
