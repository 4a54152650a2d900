//! What the fuzz targets share: how an input is taken apart, and what holds for every parser.

use libfuzzer_sys::Corpus;
use proxyshift::error::Error;
use proxyshift::visible::{is_hidden, visible};

/// The byte between the parts of an input. It is in no UTF-8 text, so parts need no length.
const SEPARATOR: u8 = 0xff;

/// An input: a letter that says which parser it is for, then what that parser reads.
pub struct Input<'a> {
    /// The first byte.
    pub kind: u8,
    /// All other bytes.
    pub bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// Takes an input apart; none if it is empty.
    pub fn of(input: &'a [u8]) -> Option<Input<'a>> {
        input.split_first().map(|(kind, bytes)| Input { kind: *kind, bytes })
    }

    /// The parts of the input, all of which must be UTF-8.
    pub fn texts(&self) -> Option<Vec<&'a str>> {
        self.bytes.split(|byte| *byte == SEPARATOR).map(|part| str::from_utf8(part).ok()).collect()
    }
}

/// Gives the parts of an input to the function, which is none for an unknown kind or a missing part.
pub fn with_texts(input: &[u8], run: impl FnOnce(u8, &[&str]) -> Option<()>) -> Corpus {
    let done = Input::of(input).and_then(|input| run(input.kind, &input.texts()?));
    if done.is_some() { Corpus::Keep } else { Corpus::Reject }
}

/// The result of a parser, whose error must be fit to be shown.
pub fn parsed<T>(result: Result<T, Error>, input: &str) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            shown(&error.to_string());
            bounded(error.to_string().len(), input.len());
            None
        }
    }
}

/// No result is much larger than what it was made of.
pub fn bounded(result: usize, input: usize) {
    assert!(result <= 8 * input + 4096, "{result} bytes of {input}");
}

/// What a terminal is given of a text hides nothing, and is the same when it is shown again.
pub fn shown(text: &str) {
    let once = visible(text);
    assert!(!once.contains(is_hidden));
    assert_eq!(visible(&once), once);
    assert!(once.len() <= 10 * text.len());
}
