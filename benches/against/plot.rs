//! Lines in a plane, as SVG.

use std::fmt::Write as _;

/// A plot.
pub struct Plot<'a> {
    pub title: &'a str,
    /// What stands below, at which place: from 0 to 1.
    pub across: Vec<(f64, String)>,
    pub across_name: &'a str,
    /// What stands at the left, from the bottom, 0, to the top, 1.
    pub up: Vec<(f64, String)>,
    pub up_name: &'a str,
    pub lines: Vec<Line<'a>>,
}

pub struct Line<'a> {
    pub name: &'a str,
    pub colour: &'static str,
    /// From the bottom left to the top right.
    pub points: Vec<(f64, f64)>,
}

const SIZE: (f64, f64) = (760.0, 400.0);
/// Left, top, right, bottom.
const MARGINS: (f64, f64, f64, f64) = (80.0, 50.0, 170.0, 60.0);

impl Plot<'_> {
    pub fn svg(&self) -> String {
        let (width, height) = SIZE;
        let (left, top, right, bottom) = MARGINS;
        let x = |part: f64| left + part * (width - left - right);
        let y = |part: f64| height - bottom - part * (height - top - bottom);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
        );
        // Writing to a String does not fail.
        let mut text = |place: (f64, f64), anchor: &str, more: &str, words: &str| {
            let words = words.replace('&', "&amp;").replace('<', "&lt;");
            _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\"{more}>{words}</text>",
                place.0, place.1
            );
        };
        text((left, 28.0), "start", " font-size=\"16\"", self.title);
        text((f64::midpoint(x(0.0), x(1.0)), height - 15.0), "middle", "", self.across_name);
        text((left - 70.0, top - 8.0), "start", "", self.up_name);
        for (part, words) in &self.across {
            text((x(*part), height - bottom + 20.0), "middle", "", words);
        }
        for (part, words) in &self.up {
            text((left - 8.0, y(*part) + 4.0), "end", "", words);
        }
        // Names stand where their lines end, but not on one another.
        let mut ends: Vec<(f64, usize)> = self
            .lines
            .iter()
            .enumerate()
            .map(|(index, line)| (line.points.last().map_or(0.0, |end| y(end.1)), index))
            .collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut lowest = f64::MIN;
        for (end, index) in ends {
            lowest = (lowest + 16.0).max(end + 4.0);
            let Line { name, colour, .. } = &self.lines[index];
            text((x(1.0) + 10.0, lowest), "start", &format!(" fill=\"{colour}\""), name);
        }
        for (part, _) in &self.up {
            _ = writeln!(
                svg,
                "<line x1=\"{:.1}\" y1=\"{2:.1}\" x2=\"{:.1}\" y2=\"{2:.1}\" stroke=\"#dddddd\"/>",
                x(0.0),
                x(1.0),
                y(*part)
            );
        }
        for Line { colour, points, .. } in &self.lines {
            let places: Vec<String> =
                points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
            _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                places.join(" ")
            );
            for point in points {
                let (x, y) = (x(point.0), y(point.1));
                _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}
