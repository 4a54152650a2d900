//! Stretches of a text that is kept once.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::TryFromIntError;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text with several owners. A file of a node may be large: sharing it does not copy it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared(Arc<String>);

impl Shared {
    /// `word` as a stretch of this text, if it is one; a copy else.
    pub(super) fn stretch(&self, word: &str) -> Text {
        let start = word.as_ptr().addr().wrapping_sub(self.as_ptr().addr());
        let end = start.wrapping_add(word.len());
        match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) if end as usize <= self.len() => Text::part(self, start, end),
            _ => Text::from(word),
        }
    }
}

impl Deref for Shared {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Shared {
    fn as_ref(&self) -> &str {
        self
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl From<String> for Shared {
    fn from(text: String) -> Shared {
        Shared(Arc::new(text))
    }
}

impl From<&str> for Shared {
    fn from(text: &str) -> Shared {
        Shared::from(text.to_owned())
    }
}

/// A stretch of a shared text: on a large node most rules are named in a plan, and a copy of each
/// would be a copy of the node. Equal, ordered and shown as the text it is.
#[derive(Clone)]
pub struct Text {
    whole: Shared,
    start: u32,
    end: u32,
}

impl Text {
    /// The bytes from `start` to `end`, both on character boundaries.
    pub(super) fn part(whole: &Shared, start: u32, end: u32) -> Text {
        Text { whole: whole.clone(), start, end }
    }

    /// No text, which shares what this one shares.
    pub fn empty(&self) -> Text {
        Text { whole: self.whole.clone(), start: 0, end: 0 }
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.whole[self.start as usize..self.end as usize]
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for Text {
    /// All of `text`: a rule or a name, nothing near the 4 GiB that it can be at most.
    fn from(text: String) -> Text {
        let end = u32::try_from(text.len()).unwrap_or(0);
        Text { whole: text.into(), start: 0, end }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Text {
        Text::from(text.to_owned())
    }
}

impl Default for Text {
    fn default() -> Text {
        Text::from("")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl<T: AsRef<str>> PartialEq<T> for Text {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl PartialEq<Text> for String {
    fn eq(&self, other: &Text) -> bool {
        **self == **other
    }
}

impl PartialOrd for Text {
    fn partial_cmp(&self, other: &Text) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text {
    fn cmp(&self, other: &Text) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}

impl Borrow<str> for Text {
    fn borrow(&self) -> &str {
        self
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        String::deserialize(deserializer).map(Text::from)
    }
}

/// Texts put into one, of which each is a stretch then: many small texts take more room than they
/// hold.
#[derive(Debug, Default)]
pub struct Gathered {
    whole: String,
    ends: Vec<usize>,
}

impl Gathered {
    /// Adds a text.
    pub fn push(&mut self, text: &str) {
        self.whole.push_str(text);
        self.ends.push(self.whole.len());
    }

    /// The texts, in order.
    ///
    /// # Errors
    /// When they are larger than 4 GiB.
    pub fn texts(self) -> Result<impl Iterator<Item = Text>, TryFromIntError> {
        u32::try_from(self.whole.len())?;
        let whole = Shared::from(self.whole);
        let mut start = 0;
        Ok(self.ends.into_iter().map(move |end| {
            let end = u32::try_from(end).unwrap_or(u32::MAX);
            Text::part(&whole, std::mem::replace(&mut start, end), end)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_the_text_it_shows() {
        let whole = Shared::from("one two");
        let two = Text::part(&whole, 4, 7);
        assert_eq!((&*two, two.len()), ("two", 3));
        assert_eq!(two, Text::from("two"));
        assert!(Text::part(&whole, 0, 3) < two);
        let json = serde_json::to_string(&two).unwrap();
        assert_eq!((json.as_str(), format!("{two:?} {two}")), ("\"two\"", "\"two\" two".into()));
        assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), two);
    }

    #[test]
    fn a_word_of_a_text_is_a_stretch_of_it() {
        let whole = Shared::from("one two");
        let of_it = |text: &Text| text.whole.as_ptr() == whole.as_ptr();
        let (two, other) = (whole.stretch(&whole[4..]), whole.stretch("two"));
        assert_eq!((&*two, &*other), ("two", "two"));
        assert_eq!((of_it(&two), of_it(&other)), (true, false));
    }

    #[test]
    fn texts_gathered_are_what_they_were() {
        let mut gathered = Gathered::default();
        ["one", "", "three"].iter().for_each(|text| gathered.push(text));
        let texts: Vec<Text> = gathered.texts().unwrap().collect();
        assert_eq!(texts, ["one", "", "three"]);
    }
}
