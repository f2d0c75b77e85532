//! Streams of the emulated driver: what events order, what is reported when nothing does, and what the cost model says.

use psa::device::launches;
use psa::driver::{
    Costs, Driver, DriverError, Emulated, EmulatedOptions, Order, StreamId, StreamOptions, Streams,
};
use psa::timeline::SpanKind;

fn driver(order: Order) -> Emulated {
    let options = StreamOptions { order, ..StreamOptions::default() };
    Emulated::new(EmulatedOptions::default()).unwrap().with_streams(options)
}

const BOTH: [Order; 3] = [Order::Timed, Order::Seeded(1), Order::Seeded(77)];
const BYTES: usize = 256;

fn is_hazard(result: Result<(), DriverError>) -> bool {
    matches!(result, Err(DriverError::Hazard { .. }))
}

#[test]
fn two_streams_on_the_same_bytes_are_a_hazard_until_an_event_orders_them() {
    for order in BOTH {
        for ordered in [false, true] {
            let mut d = driver(order);
            let other = d.stream("copies").unwrap();
            let event = d.event().unwrap();
            let host = d.pinned(BYTES, "host").unwrap().address();
            let (a, b) = (d.alloc(BYTES, "a").unwrap(), d.alloc(BYTES, "b").unwrap());
            d.copy_on(other, a, host, BYTES).unwrap();
            d.record(event, other).unwrap();
            if ordered {
                d.wait_event(StreamId::MAIN, event, "copied").unwrap();
            }
            d.copy_on(StreamId::MAIN, b, a, BYTES).unwrap();
            d.synchronize(other).ok();
            let result = d.synchronize(StreamId::MAIN);
            assert_eq!(is_hazard(result.clone()), !ordered, "{order:?} {result:?}");
            if let Err(error) = result {
                let text = error.to_string();
                assert!(text.contains("byte 0 of a") && text.contains("on copies"), "{text}");
            }
        }
    }
}

#[test]
fn a_pinned_buffer_reused_in_flight_is_a_hazard_unless_the_host_waited_or_saw_a_flag() {
    for order in BOTH {
        for how in ["nothing", "wait", "flag"] {
            let mut d = driver(order);
            let copies = d.stream("copies").unwrap();
            let host = d.pinned(BYTES, "staging").unwrap().address();
            let flag = d.pinned(4, "flag").unwrap().address();
            let a = d.alloc(BYTES, "a").unwrap();
            d.write_pinned(host, &[1; BYTES]).unwrap();
            d.copy_on(copies, a, host, BYTES).unwrap();
            d.signal(copies, flag, 7).unwrap();
            match how {
                "wait" => d.synchronize(copies).unwrap(),
                "flag" => while d.peek(flag).unwrap() != 7 {},
                _ => {}
            }
            let syncs = d.stream_counters().host_syncs;
            assert_eq!(syncs, u64::from(how == "wait"), "a flag is no wait");
            d.write_pinned(host, &[2; BYTES]).unwrap();
            assert_eq!(is_hazard(d.synchronize(copies)), how == "nothing", "{order:?} {how}");
        }
    }
}

#[test]
fn memory_freed_in_flight_is_a_hazard() {
    for order in BOTH {
        let mut d = driver(order);
        let copies = d.stream("copies").unwrap();
        let host = d.pinned(BYTES, "staging").unwrap().address();
        let a = d.alloc(BYTES, "a").unwrap();
        d.copy_on(copies, a, host, BYTES).unwrap();
        d.free(a).unwrap();
        // Where the copy has not run yet, it finds no memory; where it has, nothing ordered the free behind it.
        assert!(d.synchronize(copies).is_err(), "{order:?}");
    }
}

#[test]
fn kernels_are_watched_byte_by_byte_not_buffer_by_buffer() {
    // gather writes slot 1 of an arena while a copy writes slot 1 (a hazard) or slot 0 (none).
    for order in BOTH {
        for slot in [0u64, 1] {
            let mut d = driver(order);
            let copies = d.stream("copies").unwrap();
            let (tier, arena) = (d.pinned(2 * BYTES, "tier").unwrap(), d.region(2 * BYTES, "arena").unwrap());
            let pairs = d.pinned(8, "pairs").unwrap();
            d.write_pinned(pairs.address(), bytemuck::bytes_of(&[0u32, 1])).unwrap();
            let gather = launches::gather(tier, arena, pairs, 1, BYTES, 1).unwrap();
            d.launch_on(StreamId::MAIN, &gather).unwrap();
            d.copy_on(copies, arena.address() + slot * BYTES as u64, tier.address(), BYTES).unwrap();
            d.synchronize(copies).ok();
            assert_eq!(is_hazard(d.synchronize(StreamId::MAIN)), slot == 1, "{order:?}");
        }
    }
}

#[test]
fn a_missing_wait_shows_as_different_results_under_different_seeds() {
    let result = |seed| {
        let mut d = driver(Order::Seeded(seed));
        let copies = d.stream("copies").unwrap();
        let host = d.pinned(2 * BYTES, "host").unwrap().address();
        d.write_pinned(host, &[1; BYTES]).unwrap();
        let (a, b) = (d.alloc(BYTES, "a").unwrap(), d.pinned(BYTES, "b").unwrap().address());
        d.copy_on(StreamId::MAIN, a, host + BYTES as u64, BYTES).unwrap();
        d.synchronize(StreamId::MAIN).unwrap();
        d.copy_on(copies, a, host, BYTES).unwrap();
        d.copy_on(StreamId::MAIN, b, a, BYTES).unwrap();
        let _ = (d.synchronize(copies), d.synchronize(StreamId::MAIN));
        let mut byte = [0];
        d.read_pinned(b, &mut byte).unwrap();
        byte[0]
    };
    let seen: std::collections::BTreeSet<u8> = (0..32).map(result).collect();
    assert_eq!(seen.len(), 2, "32 seeds ran both orders");
}

#[test]
fn the_model_lets_streams_overlap_and_a_waiting_host_pay() {
    let costs = Costs { enqueue: 0.0, enqueue_event: 0.0, ..Costs::H100 };
    let options = StreamOptions { costs, ..StreamOptions::default() };
    let mut d = Emulated::new(EmulatedOptions::default()).unwrap().with_streams(options);
    let copies = d.stream("copies").unwrap();
    let event = d.event().unwrap();
    d.trace(true).unwrap();
    let (host, a) = (d.pinned(540_000, "host").unwrap().address(), d.alloc(540_000, "a").unwrap());
    d.copy_on(copies, a, host, 540_000).unwrap(); // 10 us of link and 1.5 of set-up
    d.record(event, copies).unwrap();
    d.occupy(StreamId::MAIN, "work", 4.0).unwrap();
    d.wait_event(StreamId::MAIN, event, "copied").unwrap();
    d.occupy(StreamId::MAIN, "work", 4.0).unwrap();
    d.synchronize(StreamId::MAIN).unwrap();
    // 11.5 for the copy, of which 4 are hidden; 4 more of work; 10 for the host to notice.
    assert!((d.modelled_us() - 25.5).abs() < 1e-9, "{}", d.modelled_us());
    let timeline = d.timeline().unwrap();
    assert!(timeline.modelled);
    assert!((timeline.total_us(0, SpanKind::Stall) - 7.5).abs() < 1e-9);
}

#[test]
fn wrong_handles_and_places_are_named() {
    let mut d = driver(Order::Timed);
    let copies = d.stream("copies").unwrap();
    let a = d.alloc(BYTES, "a").unwrap();
    let text = d.copy_on(StreamId(9), a, a, 1).unwrap_err().to_string();
    assert!(text.contains("stream 9") && text.contains('2'), "{text}");
    let text = d.record(psa::driver::EventId(3), copies).unwrap_err().to_string();
    assert!(text.contains("event 3"), "{text}");
    assert!(matches!(d.write_pinned(a, &[0]), Err(DriverError::Memory { call: "write", .. })));
    assert!(matches!(d.peek(a), Err(DriverError::Memory { call: "peek", .. })));
    // A copy outside memory fails the device's streams, and everybody who asks is told.
    let _ = d.copy_on(copies, a, a + 4096, BYTES);
    assert!(d.synchronize(copies).is_err());
    assert!(d.synchronize(StreamId::MAIN).is_err());
}
