//! Questions on a terminal. Without a terminal nothing is asked: the usual answer applies, or the option is missing.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Read, StdinLock, Write};
use std::str::FromStr;

use anyhow::bail;

/// A wrong or missing answer. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Wrong(pub(super) String);

/// The longest answer, in bytes: a join token, with some room.
const MAX_ANSWER: u64 = wiretight_keys::token::MAX_LEN as u64 + 64;

pub(super) struct Questions<R> {
    /// `None` without a terminal.
    input: Option<R>,
}

impl Questions<StdinLock<'static>> {
    pub(super) fn of_the_terminal() -> Self {
        let input = io::stdin();
        Questions { input: input.is_terminal().then(|| input.lock()) }
    }
}

impl<R: BufRead> Questions<R> {
    #[cfg(test)]
    pub(super) fn of(input: Option<R>) -> Self {
        Questions { input }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.input.is_some()
    }

    /// The value of an option, or the answer to a question. `fits` says why a value cannot be used, and what to do.
    pub(super) fn required<T: FromStr<Err: Display>>(
        &mut self,
        option: &str,
        question: &str,
        given: Option<T>,
        usual: Option<String>,
        fits: impl Fn(&T) -> Result<(), String>,
    ) -> anyhow::Result<T> {
        if let Some(value) = given {
            fits(&value).map_err(|why| Wrong(format!("{option}: {why}")))?;
            return Ok(value);
        }
        self.answer(option, question, usual.as_deref(), |text| {
            let value = text.parse().map_err(|e: T::Err| e.to_string())?;
            fits(&value)?;
            Ok(value)
        })
    }

    /// The answer to a question; without a terminal, the usual one.
    pub(super) fn answer<T>(
        &mut self,
        option: &str,
        question: &str,
        usual: Option<&str>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let asked = match usual {
            Some(usual) => format!("{question} [{usual}]"),
            None => question.to_owned(),
        };
        loop {
            let typed = self.line(&asked)?;
            let text = match (typed.as_ref().map(|text| text.as_str()), usual) {
                (None, None) => bail!(Wrong(format!(
                    "{option} is missing. This is not a terminal, so give it as an option."
                ))),
                (None | Some(""), Some(usual)) => usual,
                (Some(text), _) => text,
            };
            match read(text) {
                Ok(value) => return Ok(value),
                Err(why) if typed.is_none() => bail!(Wrong(format!("{option}: {why}"))),
                Err(why) => eprintln!("{why}"),
            }
        }
    }

    /// The answer to a question that may be left open; without a terminal, it is.
    pub(super) fn optional<T>(
        &mut self,
        question: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<Option<T>> {
        loop {
            let typed = self.line(question)?;
            match typed.as_ref().map(|text| text.as_str()) {
                None | Some("") => return Ok(None),
                Some(text) => match read(text) {
                    Ok(value) => return Ok(Some(value)),
                    Err(why) => eprintln!("{why}"),
                },
            }
        }
    }

    /// What was typed, without white space around it; `None` without a terminal.
    fn line(&mut self, question: &str) -> anyhow::Result<Option<zeroize::Zeroizing<String>>> {
        let Some(input) = &mut self.input else { return Ok(None) };
        eprint!("{question}: ");
        io::stderr().flush()?;
        let mut typed = zeroize::Zeroizing::new(String::new());
        if input.take(MAX_ANSWER).read_line(&mut typed)? == 0 {
            eprintln!();
            bail!("the input has ended, so nothing was written");
        }
        Ok(Some(zeroize::Zeroizing::new(typed.trim().to_owned())))
    }
}
