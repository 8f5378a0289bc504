use super::*;

/// When SYNs leave within `wait` if the first RST comes after `dark`.
fn leaves(dark: Duration, wait: Duration) -> Vec<Duration> {
    let begin = Instant::now();
    let mut pace = Pace::new(begin);
    let (mut now, mut all) = (begin, Vec::new());
    while now < begin + wait {
        all.push(now - begin);
        let next = pace.sent(now);
        if now >= begin + dark {
            pace.booting = true;
        }
        now = next;
    }
    all
}

#[test]
fn no_wait_of_any_length_takes_more_than_ten_packets_a_second() {
    for dark in [0, 1, 3, 10, 40].map(Duration::from_secs) {
        for wait in 3..=40 {
            let sent = leaves(dark, Duration::from_secs(wait)).len();
            assert!(sent as u64 <= 10 * wait + 1, "{sent} in {wait} s, dark for {dark:?}");
        }
    }
}

#[test]
fn the_next_syn_is_never_further_than_the_lag_that_is_allowed() {
    let all = leaves(Duration::from_secs(5), Duration::from_secs(30));
    assert!(all.windows(2).all(|w| w[1] - w[0] <= Duration::from_millis(120)));
}

#[test]
fn what_was_saved_in_the_dark_is_spent_once_the_vm_is_up() {
    let all = leaves(Duration::from_secs(10), Duration::from_secs(12));
    let after = all.windows(2).filter(|w| w[0] > Duration::from_millis(10_100));
    assert!(after.take(20).all(|w| w[1] - w[0] == BOOTING));
}
