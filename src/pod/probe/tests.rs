use std::sync::{Arc, Mutex};

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

const fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A VM behind a network and a kernel that sends the SYN of a connect again. Times are since its begin.
#[derive(Clone, Debug)]
struct Booting {
    begin: Instant,
    /// From here on there are answers …
    up: Duration,
    /// … but for this long.
    away: std::ops::Range<Duration>,
    /// From here on they are no RST, and what is accepted is served.
    serves: Duration,
    /// From here on connections are accepted, which come to nothing before it serves: at once, or never.
    listens: Duration,
    hangs: bool,
    round_trip: Duration,
    /// What TLS and the agent take.
    enters: Duration,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    packets: Vec<Duration>,
    under_way: usize,
    most: usize,
}

impl Booting {
    /// Silent until `up`, refuses until it `serves`.
    fn new(up: Duration, serves: Duration) -> Self {
        Self {
            begin: Instant::now(),
            up,
            away: Duration::ZERO..Duration::ZERO,
            serves,
            listens: serves,
            hangs: false,
            round_trip: millis(1),
            enters: Duration::ZERO,
            seen: Arc::default(),
        }
    }

    /// When it was reached, and when SYNs left for it.
    async fn reached(&self) -> (Duration, Vec<Duration>) {
        let reaching = reach(self, ([127, 0, 0, 1], 1).into(), None, |_| {});
        tokio::time::timeout(Duration::from_secs(300), reaching).await.expect("it is reached");
        (self.begin.elapsed(), std::mem::take(&mut self.seen().packets))
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("no test panics while it holds a lock")
    }
}

/// A connect; given up when it is dropped.
struct UnderWay<'a>(&'a Booting);

impl<'a> UnderWay<'a> {
    fn new(vm: &'a Booting) -> Self {
        let mut seen = vm.seen();
        seen.under_way += 1;
        seen.most = seen.most.max(seen.under_way);
        drop(seen);
        Self(vm)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.seen().under_way -= 1;
    }
}

#[async_trait::async_trait]
impl Guest for Booting {
    async fn knock(&self, _: SocketAddr, bound: Duration) -> Result<Box<dyn Door>, Unready> {
        let _under_way = UnderWay::new(self);
        let unready = |stage, reason: &str| Unready { stage, reason: reason.to_owned() };
        let connecting = async {
            for again in [1, 2, 4, 8].map(Duration::from_secs) {
                let now = self.begin.elapsed();
                self.seen().packets.push(now);
                if now < self.up || self.away.contains(&now) {
                    tokio::time::sleep(again).await;
                    continue;
                }
                tokio::time::sleep(self.round_trip).await;
                if now < self.listens {
                    return Err(unready(Stage::Refused, "RST"));
                }
                let door = Accepted { served: now >= self.serves, vm: self.clone() };
                return Ok(Box::new(door) as Box<dyn Door>);
            }
            Err(unready(Stage::Unreachable, "silence"))
        };
        let silence = unready(Stage::Unreachable, "silence");
        tokio::time::timeout(bound, connecting).await.unwrap_or(Err(silence))
    }
}

#[derive(Debug)]
struct Accepted {
    served: bool,
    vm: Booting,
}

#[async_trait::async_trait]
impl Door for Accepted {
    async fn enter(
        self: Box<Self>,
        _: Option<&ClientTls>,
        bound: Duration,
    ) -> Result<Box<dyn Pulse>, Unready> {
        let entering = async {
            tokio::time::sleep(self.vm.enters).await;
            if !self.served && self.vm.hangs {
                std::future::pending::<()>().await;
            }
        };
        let entered = tokio::time::timeout(bound, entering).await;
        let reason = "no handshake".to_owned();
        let unready = Unready { stage: Stage::Tls, reason };
        entered.ok().filter(|()| self.served).ok_or(unready)?;
        Ok(Box::new(Early(self.vm.begin)))
    }
}

#[tokio::test(start_paused = true)]
async fn however_a_vm_boots_packets_are_few_at_any_moment_and_it_is_found_at_once() {
    let waits = [0, 300, 1000, 5000, 10_000].map(millis);
    let round_trips = [1, 50].map(millis);
    for (dark, refuses) in waits.iter().flat_map(|dark| waits.map(|refuses| (*dark, refuses))) {
        for round_trip in round_trips {
            let vm = Booting { round_trip, ..Booting::new(dark, dark + refuses) };
            let (reached, packets) = vm.reached().await;
            let case = format!("dark {dark:?}, refuses {refuses:?}, {round_trip:?}: {packets:?}");
            for (n, at) in packets.iter().enumerate() {
                assert!(
                    n as f64 <= at.as_secs_f64() * f64::from(BUDGET) + 1.0,
                    "{n} at {at:?}: {case}"
                );
            }
            // The first that a VM which is up can answer, and its answer hastens the next.
            let first = packets.iter().find(|at| **at >= dark).copied().expect("one reached it");
            for pair in packets.windows(2) {
                let allowed = match pair[0] {
                    at if at < first => millis(200),
                    at if at == first => millis(100) + round_trip,
                    _ => millis(100),
                };
                assert!(pair[1] - pair[0] <= allowed, "{pair:?}: {case}");
            }
            let allowed = if refuses > millis(200) + round_trip { 100 } else { 200 };
            let late = reached - (dark + refuses);
            assert!(late <= millis(allowed) + round_trip, "{late:?}: {case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answers_that_take_their_time_are_waited_for() {
    let slow = Booting {
        round_trip: millis(700),
        enters: millis(2500),
        ..Booting::new(millis(0), millis(0))
    };
    assert_eq!(slow.reached().await.0, millis(3200));
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_before_the_vm_served_holds_nobody_up_for_long() {
    let up = Booting { listens: millis(0), ..Booting::new(millis(0), millis(1050)) };
    // Others are accepted while we wait on the first, for nothing.
    let hangs = Booting { hangs: true, round_trip: millis(300), ..up.clone() };
    let (reached, _) = hangs.reached().await;
    assert!(reached < millis(4000), "{reached:?}");
    let says_so = Booting { begin: Instant::now(), ..up };
    let (reached, packets) = says_so.reached().await;
    assert!(reached <= millis(1150) + says_so.round_trip, "{reached:?}: {packets:?}");
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_falls_silent_again_is_asked_by_no_more_than_a_dozen_connects_at_a_time() {
    let away = millis(10_500)..millis(16_000);
    let vm = Booting { away, ..Booting::new(millis(10_000), millis(16_000)) };
    vm.reached().await;
    let most = vm.seen().most;
    assert!((6..=12).contains(&most), "{most}");
}

/// There is no route to it for a while.
#[derive(Debug)]
struct NoRoute(Booting);

#[async_trait::async_trait]
impl Guest for NoRoute {
    async fn knock(&self, to: SocketAddr, bound: Duration) -> Result<Box<dyn Door>, Unready> {
        if self.0.begin.elapsed() < self.0.up {
            let now = self.0.begin.elapsed();
            self.0.seen().packets.push(now);
            return Err(Unready { stage: Stage::Unreachable, reason: "no route".to_owned() });
        }
        self.0.knock(to, bound).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_network_that_has_no_route_yet_is_no_sign_of_the_vm() {
    let vm = NoRoute(Booting::new(millis(5000), millis(5000)));
    reach(&vm, ([127, 0, 0, 1], 1).into(), None, |_| {}).await;
    let packets = vm.0.seen().packets.clone();
    assert!(packets.windows(2).all(|pair| pair[1] - pair[0] >= millis(200)), "{packets:?}");
}
