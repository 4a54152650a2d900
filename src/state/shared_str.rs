//! Slices that share one text instead of copying it.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::TryFromIntError;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that several owners share. A file of a node may be large, and is not copied for each
/// owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedStr(Arc<String>);

impl SharedStr {
    /// The slice of this text that `word` points into. If `word` does not point into this text, a
    /// copy of `word`.
    pub(super) fn slice_of(&self, word: &str) -> StrSlice {
        let start = word.as_ptr().addr().wrapping_sub(self.as_ptr().addr());
        let end = start.wrapping_add(word.len());
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) if end as usize <= self.len() => StrSlice::part(self, start, end),
            _ => StrSlice::from(word),
        }
    }
}

impl Deref for SharedStr {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for SharedStr {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for SharedStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl From<String> for SharedStr {
    fn from(text: String) -> SharedStr {
        SharedStr(Arc::new(text))
    }
}

impl From<&str> for SharedStr {
    fn from(text: &str) -> SharedStr {
        SharedStr::from(text.to_owned())
    }
}

/// A slice of a shared text. A plan of a large node names most of its rules, and copying each
/// rule's text would copy the node. Slices compare and display as their text.
#[derive(Clone)]
pub struct StrSlice {
    whole: SharedStr,
    start: u32,
    end: u32,
}

impl StrSlice {
    /// The slice from byte `start` to byte `end` of `whole`; both must be character boundaries.
    pub(super) fn part(whole: &SharedStr, start: u32, end: u32) -> StrSlice {
        StrSlice { whole: whole.clone(), start, end }
    }

    /// An empty slice that shares the same text.
    pub fn empty(&self) -> StrSlice {
        StrSlice { whole: self.whole.clone(), start: 0, end: 0 }
    }

    /// The text of the slice.
    pub fn as_str(&self) -> &str {
        &self.whole[self.start as usize..self.end as usize]
    }
}

impl Deref for StrSlice {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for StrSlice {
    /// A slice of all of `text`, which must be shorter than 4 GiB. Rules and names are far shorter.
    fn from(text: String) -> StrSlice {
        let end = u32::try_from(text.len()).unwrap_or(0);
        StrSlice { whole: text.into(), start: 0, end }
    }
}

impl From<&str> for StrSlice {
    fn from(text: &str) -> StrSlice {
        StrSlice::from(text.to_owned())
    }
}

impl Default for StrSlice {
    fn default() -> StrSlice {
        StrSlice::from("")
    }
}

impl PartialEq for StrSlice {
    fn eq(&self, other: &StrSlice) -> bool {
        **self == **other
    }
}

impl Eq for StrSlice {}

impl<T: AsRef<str>> PartialEq<T> for StrSlice {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl PartialEq<StrSlice> for String {
    fn eq(&self, other: &StrSlice) -> bool {
        **self == **other
    }
}

impl PartialOrd for StrSlice {
    fn partial_cmp(&self, other: &StrSlice) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for StrSlice {
    fn cmp(&self, other: &StrSlice) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for StrSlice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for StrSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for StrSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl Borrow<str> for StrSlice {
    fn borrow(&self) -> &str {
        self
    }
}

impl Serialize for StrSlice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for StrSlice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StrSlice, D::Error> {
        String::deserialize(deserializer).map(StrSlice::from)
    }
}

/// Joins many small texts into one, and returns slices of that text. Kept separately, each small
/// text would take more memory than its content.
#[derive(Debug, Default)]
pub struct StrArena {
    whole: String,
    ends: Vec<usize>,
}

impl StrArena {
    /// Adds a text after the texts added before.
    pub fn push(&mut self, text: &str) {
        self.whole.push_str(text);
        self.ends.push(self.whole.len());
    }

    /// The added texts as slices, in order.
    ///
    /// # Errors
    /// If the texts together exceed 4 GiB.
    pub fn texts(self) -> Result<impl Iterator<Item = StrSlice>, TryFromIntError> {
        u32::try_from(self.whole.len())?;
        let whole = SharedStr::from(self.whole);
        let mut start = 0;
        Ok(self.ends.into_iter().map(move |end| {
            let end = u32::try_from(end).unwrap_or(u32::MAX);
            StrSlice::part(&whole, std::mem::replace(&mut start, end), end)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_the_text_it_shows() {
        let whole = SharedStr::from("one two");
        let two = StrSlice::part(&whole, 4, 7);
        assert_eq!((&*two, two.len()), ("two", 3));
        assert_eq!(two, StrSlice::from("two"));
        assert!(StrSlice::part(&whole, 0, 3) < two);
        let json = serde_json::to_string(&two).unwrap();
        assert_eq!((json.as_str(), format!("{two:?} {two}")), ("\"two\"", "\"two\" two".into()));
        assert_eq!(serde_json::from_str::<StrSlice>(&json).unwrap(), two);
    }

    #[test]
    fn a_word_of_a_text_is_a_stretch_of_it() {
        let whole = SharedStr::from("one two");
        let of_it = |text: &StrSlice| text.whole.as_ptr() == whole.as_ptr();
        let (two, other) = (whole.slice_of(&whole[4..]), whole.slice_of("two"));
        assert_eq!((&*two, &*other), ("two", "two"));
        assert_eq!((of_it(&two), of_it(&other)), (true, false));
    }

    #[test]
    fn joined_texts_are_unchanged() {
        let mut gathered = StrArena::default();
        ["one", "", "three"].iter().for_each(|text| gathered.push(text));
        let texts: Vec<StrSlice> = gathered.texts().unwrap().collect();
        assert_eq!(texts, ["one", "", "three"]);
    }
}
