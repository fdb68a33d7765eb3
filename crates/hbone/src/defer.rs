//! Batching for connection drivers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Polls its future one scheduler round after it was woken.
///
/// A stream task that writes wakes its connection's driver. A scheduler that runs the driver at once (tokio's LIFO slot
/// does) makes every small write its own TLS record and system call. Waiting one round lets the other ready tasks write
/// first, so that one flush takes all of it.
#[derive(Debug)]
pub struct Defer<F> {
    inner: F,
    defers: bool,
    /// The wake-up that is being served has waited its round.
    waited: bool,
}

impl<F> Defer<F> {
    /// Wraps a driver. With `defers` off it is polled as it is woken.
    pub fn new(inner: F, defers: bool) -> Self {
        Self { inner, defers, waited: true }
    }
}

impl<F: Future + Unpin> Future for Defer<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.defers && !this.waited {
            this.waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.waited = false;
        Pin::new(&mut this.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    /// How often a driver is polled for writes by many tasks in one round.
    async fn polls_for_ten_wakes(defers: bool) -> usize {
        let polls = Rc::new(RefCell::new(0));
        let waker: Rc<RefCell<Option<Waker>>> = Rc::default();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let driver = {
                    let (polls, waker) = (Rc::clone(&polls), Rc::clone(&waker));
                    Defer::new(
                        poll_fn(move |cx| {
                            *polls.borrow_mut() += 1;
                            *waker.borrow_mut() = Some(cx.waker().clone());
                            Poll::<()>::Pending
                        }),
                        defers,
                    )
                };
                let driver = tokio::task::spawn_local(driver);
                tokio::task::yield_now().await;
                let tasks: Vec<_> = (0..10)
                    .map(|_| {
                        let waker = Rc::clone(&waker);
                        tokio::task::spawn_local(async move {
                            waker.borrow().as_ref().unwrap().wake_by_ref();
                            tokio::task::yield_now().await;
                            waker.borrow().as_ref().unwrap().wake_by_ref();
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await.unwrap();
                }
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                driver.abort();
            })
            .await;
        *polls.borrow()
    }

    #[tokio::test]
    async fn serves_many_wakes_with_one_poll() {
        let deferred = polls_for_ten_wakes(true).await;
        let direct = polls_for_ten_wakes(false).await;
        assert!((2..=3).contains(&deferred), "{deferred}");
        assert!(direct >= deferred, "{direct} {deferred}");
    }

    #[tokio::test]
    async fn completes() {
        assert_eq!(Defer::new(Box::pin(async { 7 }), true).await, 7);
        let twice = Box::pin(async {
            tokio::task::yield_now().await;
            8
        });
        assert_eq!(Defer::new(twice, true).await, 8);
    }
}
