//! Which value of a list is which of the list before, by name. Mostly every name stands where it
//! stood, and nothing has to be looked up.

use crate::spec;
use ahash::AHashMap;
use std::sync::Arc;

/// Has a name that is unique in its list.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

/// Was made of a value with a name.
pub(crate) trait MadeOf<S> {
    fn spec(&self) -> &Arc<S>;
}

/// One place for each value of the list.
#[derive(Debug)]
pub(crate) struct Lineup<'a, K> {
    pub places: Vec<Place<'a, K>>,
    /// The lists have the same names in the same order.
    pub in_place: bool,
}

#[derive(Debug)]
pub(crate) enum Place<'a, K> {
    /// What was made of the value of that name before.
    Known(&'a Arc<K>),
    New,
    /// The name is taken by an earlier value of the list, at this position.
    Taken(usize),
}

impl Named for spec::Destination {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for spec::Cluster {
    fn name(&self) -> &str {
        &self.name
    }
}

impl<'a, K> Lineup<'a, K> {
    /// `previous` has `None` where a name was taken.
    pub(crate) fn new<S>(list: &[Arc<S>], previous: &'a [Option<Arc<K>>]) -> Self
    where
        S: Named,
        K: MadeOf<S>,
    {
        let same_name = |spec: &Arc<S>, before: &Arc<K>| {
            Arc::ptr_eq(spec, before.spec()) || spec.name() == before.spec().name()
        };
        let mut places = Vec::with_capacity(list.len());
        for (spec, before) in list.iter().zip(previous) {
            match before {
                Some(before) if same_name(spec, before) => places.push(Place::Known(before)),
                _ => break,
            }
        }
        let in_place = places.len() == list.len() && list.len() == previous.len();
        if !in_place {
            places.clear();
            let before: AHashMap<&str, &Arc<K>> =
                previous.iter().flatten().map(|before| (before.spec().name(), before)).collect();
            let mut taken = AHashMap::with_capacity(list.len());
            places.extend(list.iter().enumerate().map(|(position, spec)| {
                let first = *taken.entry(spec.name()).or_insert(position);
                match before.get(spec.name()) {
                    _ if first != position => Place::Taken(first),
                    Some(before) => Place::Known(before),
                    None => Place::New,
                }
            }));
        }
        Lineup { places, in_place }
    }
}

/// `None` for [`Place::New`], an error for [`Place::Taken`].
impl<'a, K> Place<'a, K> {
    pub(crate) fn known(&self) -> Result<Option<&'a Arc<K>>, usize> {
        match self {
            Place::Known(before) => Ok(Some(before)),
            Place::New => Ok(None),
            Place::Taken(first) => Err(*first),
        }
    }
}
