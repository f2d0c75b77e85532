//! What a picture promises: well-formed XML, every label in it, everything inside its frame.

use super::*;

fn picture() -> String {
    let chart = Chart {
        title: "Bytes & <mass>".to_owned(),
        x: Axis::linear("bytes read (% of dense)", 0.0, 100.0),
        y: Axis::log("missed mass (p99)", [0.05, 0.7, 0.0], Some("0")),
        series: [(Marker::Circle, "top-k \"a\""), (Marker::Star, "dense")]
            .map(|(marker, name)| Series {
                name: name.to_owned(),
                color: PALETTE[0].to_owned(),
                marker,
                line: true,
                points: vec![(30.0, 0.5), (60.0, 0.05), (100.0, 0.0)],
                marked: vec![(60.0, 0.05)],
            })
            .to_vec(),
        reference: Some((0.05, "1 - 0.95".to_owned())),
    };
    let bars = Bars {
        title: "KV read by case".to_owned(),
        axis: Axis::linear("blocks (%)", 0.0, 80.0),
        color: PALETTE[1].to_owned(),
        bar_name: "progressive".to_owned(),
        mark_name: "oracle".to_owned(),
        rows: vec![Row { name: "prose, layer 3".to_owned(), value: 31.0, mark: 27.0 }],
    };
    let mut svg = Svg::new(900.0, 400.0, "a \u{1} title");
    chart.draw(&mut svg, Rect { x: 10.0, y: 10.0, width: 520.0, height: 370.0 });
    bars.draw(&mut svg, Rect { x: 550.0, y: 10.0, width: 330.0, height: 370.0 });
    svg.finish()
}

/// Tags in order; panics where XML would not parse. Enough of a parser for what [`Svg`] writes.
fn check_xml(text: &str) {
    let mut open = Vec::new();
    let rest = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- ").unwrap();
    let (comment, mut rest) = rest.split_once("-->").unwrap();
    assert!(!comment.contains("--"), "{comment}");
    while let Some(start) = rest.find('<') {
        let characters = &rest[..start];
        assert!(!characters.contains('>'), "bare > in {characters:?}");
        for entity in characters.split('&').skip(1) {
            let name = entity.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot"].contains(&name), "bare & before {entity:?}");
        }
        let end = start + rest[start..].find('>').unwrap();
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<') && tag.matches('"').count().is_multiple_of(2), "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty() && rest.trim().is_empty());
}

#[test]
fn pictures_are_well_formed_and_carry_every_label() {
    let text = picture();
    check_xml(&text);
    for label in [
        "Bytes &amp; &lt;mass&gt;",
        "top-k &quot;a&quot;",
        "<title>a  title</title>",
        "bytes read (% of dense)",
        "missed mass (p99)",
        "1 - 0.95",
        "KV read by case",
        "prose, layer 3",
        ">31<",
        "progressive",
        "oracle",
        ">0.01<",
        ">80<",
    ] {
        assert!(text.contains(label), "{label} is not in the picture");
    }
}

#[test]
fn everything_is_drawn_inside_the_picture() {
    let text = picture();
    for (names, limit) in [(["x", "x1", "x2", "cx"], 900.0), (["y", "y1", "y2", "cy"], 400.0)] {
        for name in names {
            for value in text.split(&format!(" {name}=\"")).skip(1) {
                let value: f64 = value.split('"').next().unwrap().parse().unwrap();
                assert!((0.0..=limit).contains(&value), "{name} = {value}");
            }
        }
    }
}

#[test]
fn logarithmic_axes_have_whole_decades_and_a_floor_for_zero() {
    let axis = Axis::log("y", [0.05, 0.7, 0.0], Some("0"));
    assert_eq!((axis.min, axis.max), (0.01, 1.0));
    let texts: Vec<_> = axis.ticks().into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["0.01", "0.1", "1"]);
    assert_eq!(axis.position(0.0), None);
    assert!((axis.position(0.1).unwrap() - 0.5).abs() < 1e-12);
    let empty = Axis::log("y", [0.0], None);
    assert!(empty.min > 0.0 && empty.max > empty.min);
}

#[test]
fn linear_ticks_are_round_and_cover_the_range() {
    let texts = |max| -> Vec<String> {
        Axis::linear("x", 0.0, max).ticks().into_iter().map(|(_, text)| text).collect()
    };
    assert_eq!(texts(100.0), ["0", "20", "40", "60", "80", "100"]);
    assert_eq!(texts(0.5), ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
}
