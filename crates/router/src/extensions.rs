//! Room for what others want to keep beside a cluster or an endpoint, such as connection pools.
//!
//! One value per type, made by whoever asks first, never replaced, dropped with its owner. Reading
//! takes no lock.

use std::any::Any;
use std::fmt;
use std::sync::OnceLock;

/// Values of other crates, one per type.
#[derive(Default)]
pub struct Extensions {
    first: OnceLock<Box<Slot>>,
}

/// A chain, because there are one or two types in practice.
struct Slot {
    value: Box<dyn Any + Send + Sync>,
    next: OnceLock<Box<Slot>>,
}

impl Extensions {
    /// The value of type `T`; `init` makes it if there is none. Of several threads that ask at
    /// once, one makes it and the others wait.
    pub fn get_or_init<T: Any + Send + Sync>(&self, init: impl FnOnce() -> T) -> &T {
        let mut init = Some(init);
        let mut at = &self.first;
        loop {
            let slot = at.get_or_init(|| {
                let init =
                    init.take().expect("a slot that this call fills holds a T and ends the loop");
                Box::new(Slot { value: Box::new(init()), next: OnceLock::new() })
            });
            if let Some(value) = slot.value.downcast_ref() {
                return value;
            }
            at = &slot.next;
        }
    }

    /// The value of type `T`, if somebody made it.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        let mut at = &self.first;
        while let Some(slot) = at.get() {
            if let Some(value) = slot.value.downcast_ref() {
                return Some(value);
            }
            at = &slot.next;
        }
        None
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extensions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_per_type() {
        let extensions = Extensions::default();
        assert_eq!(extensions.get::<u32>(), None);
        assert_eq!(*extensions.get_or_init(|| 7_u32), 7);
        assert_eq!(*extensions.get_or_init(|| "text"), "text");
        assert_eq!(*extensions.get_or_init(|| 8_u32), 7);
        assert_eq!(*extensions.get_or_init(|| "other"), "text");
        assert_eq!(extensions.get::<u32>(), Some(&7));
        assert_eq!(extensions.get::<u64>(), None);
    }

    #[test]
    fn made_once_by_many_threads() {
        let extensions = Extensions::default();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    extensions
                        .get_or_init(|| made.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
