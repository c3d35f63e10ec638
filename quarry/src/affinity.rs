//! Which CPUs this process may use, and on which of them its reactors run.

use rustix::thread::CpuSet;

/// The CPUs that this process may use, in ascending order.
pub fn allowed_cpus() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// Where `count` reactors run when the operator named no CPUs: on the last allowed ones, if two or more remain for
/// the VMM and everything else; otherwise wherever the kernel puts them, because a spinning thread that is nailed
/// to one of two CPUs starves a guest that wants both.
pub fn placement(count: usize, allowed: &[usize]) -> Vec<Option<usize>> {
    if allowed.len() < count + 2 {
        return vec![None; count];
    }
    allowed[allowed.len() - count..].iter().map(|cpu| Some(*cpu)).collect()
}

/// Binds the calling thread to `cpu`.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_two_cpus_to_others() {
        assert_eq!(placement(1, &[0]), [None]);
        assert_eq!(placement(1, &[0, 1]), [None]);
        assert_eq!(placement(1, &[0, 1, 5]), [Some(5)]);
        assert_eq!(placement(2, &[0, 1, 5]), [None, None]);
        assert_eq!(placement(2, &[0, 1, 5, 6]), [Some(5), Some(6)]);
    }

    #[test]
    fn there_is_a_cpu_to_run_on() {
        let allowed = allowed_cpus();
        let last = *allowed.last().expect("this test runs on one");
        std::thread::spawn(move || pin(last).expect("an allowed CPU")).join().unwrap();
        assert!(pin(usize::MAX).is_err());
    }
}
