//! Reports arguments that cannot be parsed, in the output format that these arguments ask for.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, ValueEnum};

use crate::error::{Error, Kind};
use crate::front::cli::args::Args;
use crate::ui::Ui;
use crate::visible::visible;

/// Prints the help, the version, or the error that clap found in the arguments `words`. Returns the
/// exit code.
pub fn report(error: &clap::Error, words: &[OsString]) -> u8 {
    let ui = Ui::new(
        requested(words, &["-o", "--output"]),
        requested(words, &["--progress"]),
        // No colours of our own, because clap colours its errors itself.
        true,
    );
    if error.use_stderr() && ui.for_programs() {
        return ui.error(&as_error(error));
    }
    // clap repeats the words as they are, so they are parsed again with hidden characters escaped.
    let words = words.iter().map(|word| visible(&word.to_string_lossy()).into_owned());
    match Args::try_parse_from(words) {
        Err(error) => {
            // The error of a closed pipe is ignored.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(2)
        }
        // What was wrong is gone with the escaping, as bytes that are not UTF-8.
        Ok(_) => ui.error(&as_error(error)),
    }
}

/// The value of the option that has these names, read without clap: the last valid one, or the
/// default.
fn requested<T: ValueEnum + Default>(words: &[OsString], names: &[&str]) -> T {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    let value = |(at, word): (usize, &std::borrow::Cow<'_, str>)| {
        names.iter().find_map(|name| match word.strip_prefix(name)? {
            "" => words.get(at + 1).map(ToString::to_string),
            rest => match rest.strip_prefix('=') {
                Some(value) => Some(value.to_owned()),
                None => (!name.starts_with("--")).then(|| rest.to_owned()),
            },
        })
    };
    let known = |word: String| T::from_str(&word, false).ok();
    words.iter().enumerate().filter_map(value).filter_map(known).next_back().unwrap_or_default()
}

/// Converts an error of clap's. Its first paragraph becomes the cause, and its tip or usage line
/// the hint.
fn as_error(error: &clap::Error) -> Error {
    let named = [ContextKind::InvalidArg, ContextKind::InvalidSubcommand].into_iter();
    let object = named.filter_map(|kind| error.get(kind)).find_map(|value| match value {
        ContextValue::String(name) => Some(name.clone()),
        ContextValue::Strings(names) => Some(names.join(", ")),
        _ => None,
    });
    let object = object.unwrap_or_else(|| "proxyshift".to_owned());
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error::new(Kind::Usage, object, "it lacks a verb or an argument")
            .hint("`--help` behind it lists what there is");
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(joined);
    let cause = paragraphs.next().unwrap_or_default();
    let cause = cause.strip_prefix("error: ").unwrap_or(&cause).to_owned();
    let paragraphs: Vec<String> = paragraphs.collect();
    let hint = |start: &str| paragraphs.iter().find(|p| p.starts_with(start)).cloned();
    Error {
        hint: hint("tip: ").or_else(|| hint("Usage: ")).or_else(|| hint("For more")),
        ..Error::new(Kind::Usage, object, cause)
    }
}

/// The lines of a paragraph as one line.
fn joined(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::OutputFormat;

    #[test]
    fn the_form_is_found_however_it_is_written() {
        let output = |line: &str| {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            requested::<OutputFormat>(&words, &["-o", "--output"])
        };
        for json in ["-o json", "x -ojson", "-o=json", "--output json y", "--output=json"] {
            assert_eq!(output(json), OutputFormat::Json, "{json}");
        }
        for text in ["", "-o", "-o yaml", "--outputjson", "-o json -o text", "check --only json"] {
            assert_eq!(output(text), OutputFormat::Text, "{text}");
        }
    }
}
