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
            pace.heard(now);
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
    let gap = |w: &[Duration]| w[1] - w[0];
    assert!(all.windows(2).all(|w| gap(w) <= DARK));
    assert!(all.windows(2).filter(|w| w[0] > Duration::from_secs(6)).all(|w| gap(w) <= STEADY));
}

#[test]
fn what_was_saved_in_the_dark_is_spent_until_the_wait_is_twice_as_long() {
    for dark in [2, 10, 30].map(Duration::from_secs) {
        let all = leaves(dark, dark * 2);
        let spent = all.len() as f64 / (dark * 2).as_secs_f64();
        assert!(spent > 0.9 * f64::from(BUDGET), "{spent} a second, dark for {dark:?}");
        let gaps: Vec<_> = all.windows(2).filter(|w| w[0] > dark).map(|w| w[1] - w[0]).collect();
        let (first, last) = (gaps[1], gaps[gaps.len() - 1]);
        assert!(first < STEADY * 2 / 3 && first < last, "{first:?} to {last:?}, dark for {dark:?}");
    }
}

/// A VM whose port is open and which serves from a moment on.
#[derive(Clone, Copy, Debug)]
struct Early(Instant);

#[async_trait::async_trait]
impl Guest for Early {
    async fn knock(&self, _: SocketAddr, _: Duration) -> Result<Box<dyn Door>, Unready> {
        Ok(Box::new(*self))
    }
}

#[async_trait::async_trait]
impl Door for Early {
    async fn enter(
        self: Box<Self>,
        _: Option<&ClientTls>,
        bound: Duration,
    ) -> Result<Box<dyn Pulse>, Unready> {
        let served = tokio::time::timeout(bound, sleep_until(self.0)).await;
        let reason = "no handshake".to_owned();
        served.map_err(|_| Unready { stage: Stage::Tls, reason })?;
        Ok(self)
    }
}

#[async_trait::async_trait]
impl Pulse for Early {
    async fn beat(&mut self) -> Result<(), String> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn at_a_vm_that_listens_before_it_serves_somebody_waits_at_any_moment() {
    for tenths in 1..100 {
        let serves = Instant::now() + Duration::from_millis(tenths * 100 + 50);
        reach(&Early(serves), ([127, 0, 0, 1], 1).into(), None, |_| {}).await;
        assert!(Instant::now() - serves < Duration::from_millis(5), "late at {tenths} tenths");
    }
}
