//! What of the configuration is not honoured, and why.

use std::collections::BTreeSet;

/// So many findings of each list are kept.
pub const MAX_FINDINGS: usize = 1000;

/// Something that istiod asks for and Cairn does not do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unsupported {
    /// What kind of thing: `listener`, `matcher`, `chain`, `route`, `cluster`, `endpoint`.
    pub kind: &'static str,
    /// Name of it; for routes `chain/route`.
    pub name: String,
    /// What is not done, and what becomes of the traffic.
    pub reason: String,
}

/// Findings about one thing, collected while it is translated.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Notes {
    /// Why the thing as a whole fails closed; the first reason.
    pub broken: Option<String>,
    /// What fails closed.
    pub unsupported: BTreeSet<Unsupported>,
    /// What is done in another way, or not at all, without letting anything through that would not pass.
    pub degraded: BTreeSet<Unsupported>,
}

/// Findings about one thing, with its kind and name.
pub(super) struct Subject<'a> {
    pub kind: &'static str,
    pub name: &'a str,
    pub notes: Notes,
}

impl<'a> Subject<'a> {
    pub(super) fn new(kind: &'static str, name: &'a str) -> Self {
        Subject { kind, name, notes: Notes::default() }
    }

    /// The thing as a whole fails closed.
    pub(super) fn refuse(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        self.notes.unsupported.insert(self.finding(reason.clone()));
        self.notes.broken.get_or_insert(reason);
    }

    /// Refuses if it is so.
    pub(super) fn refuse_if(&mut self, present: bool, what: &str) {
        if present {
            self.refuse(format!("{what} is not supported"));
        }
    }

    /// Done in another way, or not at all, without letting anything through.
    pub(super) fn degrade(&mut self, reason: impl Into<String>) {
        self.notes.degraded.insert(self.finding(reason.into()));
    }

    /// Degrades if it is so.
    pub(super) fn degrade_if(&mut self, present: bool, what: &str) {
        if present {
            self.degrade(format!("{what} is not honoured"));
        }
    }

    /// A part of it fails closed.
    pub(super) fn part(&mut self, kind: &'static str, part: &str, reason: String) {
        let name = format!("{}/{part}", self.name);
        self.notes.unsupported.insert(Unsupported { kind, name, reason });
    }

    fn finding(&self, reason: String) -> Unsupported {
        Unsupported { kind: self.kind, name: self.name.to_owned(), reason }
    }
}

/// The lists of several things together, bounded, sorted and without repetition.
pub(super) fn gather<'a>(
    findings: impl Iterator<Item = &'a BTreeSet<Unsupported>>,
) -> Vec<Unsupported> {
    let all: BTreeSet<&Unsupported> = findings.flatten().collect();
    all.into_iter().take(MAX_FINDINGS).cloned().collect()
}
