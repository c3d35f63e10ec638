//! Work that waits, on a few threads.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Does `work` on each of `items`, on `threads` threads at most, until one fails: what comes after that is not begun. The
/// result is that of doing one after the other: the items' in their order, or the error of the first that has one.
pub(super) fn until_one_fails<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let failed = AtomicBool::new(false);
    let results = all(
        items,
        threads,
        |item| {
            // Items are begun in their order, so that all before one that has failed are begun.
            let result = work(item);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        },
        || failed.load(Ordering::Relaxed),
    );
    results.into_iter().flatten().collect()
}

/// Does `work` on each of `items`, begun in their order on `threads` threads at most, until `stop` says so. Those that were
/// not begun have no result.
pub(super) fn all<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
    stop: impl Fn() -> bool + Sync,
) -> Vec<Option<R>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<R>>> = Mutex::new(items.iter().map(|_| None).collect());
    let one_thread = || {
        while !stop() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return };
            let result = work(item);
            results.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[number] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len())).map(|_| scope.spawn(one_thread)).collect();
        one_thread();
        others.into_iter().for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
    });
    results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_of_errors_the_first() {
        let numbers: Vec<usize> = (0..100).collect();
        let good = until_one_fails(&numbers, 7, |number| Ok::<_, ()>(number * 2));
        assert_eq!(good.unwrap(), (0..100).map(|number| number * 2).collect::<Vec<_>>());
        for threads in [1, 2, 16] {
            let begun = AtomicUsize::new(0);
            let failed = until_one_fails(&numbers, threads, |number| {
                begun.fetch_add(1, Ordering::Relaxed);
                if *number == 10 {
                    // The later one is known to have failed first.
                    std::thread::yield_now();
                }
                if *number % 10 == 0 && *number > 0 { Err(*number) } else { Ok(()) }
            });
            assert_eq!(failed, Err(10));
            assert!(begun.into_inner() >= 11);
        }
        assert_eq!(until_one_fails(&[], 4, |_: &()| Err::<(), _>("never called")), Ok(vec![]));
    }
}
