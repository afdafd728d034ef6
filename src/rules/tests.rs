use super::*;

mod limits;
mod matching;
mod mistakes;
mod odd;
mod tiers;

fn load_text(text: &str) -> Result<RuleSet, LoadError> {
    RuleSet::from_texts([("api.yaml", text)], 0)
}

fn rules(text: &str) -> RuleSet {
    load_text(text).unwrap_or_else(|error| panic!("{error}: {}", listed(&error)))
}

fn listed(error: &LoadError) -> String {
    match error {
        LoadError::Rejected(problems) => problems.iter().map(|problem| format!("{problem}\n")).collect(),
        LoadError::Nothing { .. } => error.to_string(),
    }
}

/// Everything that is said of a text, one problem a line, without the file's name.
fn problems(text: &str) -> Vec<String> {
    let found = match load_text(text) {
        Ok(set) => set.warnings().to_vec(),
        Err(LoadError::Rejected(problems)) => problems,
        Err(error) => panic!("{error}"),
    };
    found.iter().map(|problem| problem.to_string().trim_start_matches("api.yaml:").to_owned()).collect()
}

/// The label of the rule that applies to `k=v,k=v`.
fn find<'r>(set: &'r RuleSet, descriptor: &str) -> Option<&'r Rule> {
    let entries: Vec<Entry<'_>> = descriptor
        .split(',')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() })
        .collect();
    set.domain("api").unwrap().find(&entries)
}

fn found(set: &RuleSet, descriptor: &str) -> String {
    find(set, descriptor).map_or("none".into(), |rule| rule.label.to_string())
}

#[test]
fn the_exact_value_comes_before_wildcards_in_order_and_those_before_the_bare_key() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: path, rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: path, value: '/a*z', rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: path, value: '/a*', rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: path, value: '/a/b/z', rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: path, value: '*', rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: other, value: x, rate_limit: { unit: second, requests_per_unit: 1 } }
",
    );
    for (descriptor, label) in [
        ("path=/a/b/z", "api.path_/a/b/z"),
        ("path=/a/z", "api.path_/a*z"),
        ("path=/a", "api.path_/a*"),
        ("path=/b", "api.path_*"),
        ("path=", "api.path_*"),
        ("other=x", "api.other_x"),
        ("other=y", "none"),
        ("else=x", "none"),
    ] {
        assert_eq!(found(&set, descriptor), label, "{descriptor}");
    }
}

#[test]
fn there_is_no_way_back_no_inheritance_and_the_limit_sits_at_the_descriptors_depth() {
    let set = rules(
        "
domain: api
descriptors:
  - key: user
    rate_limit: { unit: second, requests_per_unit: 1 }
    descriptors:
      - { key: path, rate_limit: { unit: second, requests_per_unit: 1 } }
  - key: user
    value: root
    descriptors:
      - { key: path, value: /x, rate_limit: { unit: second, requests_per_unit: 1 } }
",
    );
    for (descriptor, label) in [
        ("user=a", "api.user"),
        ("user=a,path=/", "api.user.path"),
        ("user=a,other=/", "none"),
        ("user=root", "none"),
        ("user=root,path=/x", "api.user_root.path_/x"),
        ("user=root,path=/y", "none"),
        ("user=a,path=/,more=1", "none"),
        ("path=/", "none"),
    ] {
        assert_eq!(found(&set, descriptor), label, "{descriptor}");
    }
    assert!(set.domain("api").unwrap().find(&[]).is_none());
}

#[test]
fn a_value_never_matches_a_rule_that_only_reads_alike_when_joined() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: a, value: b_c, rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: a_b, rate_limit: { unit: second, requests_per_unit: 1 } }
",
    );
    assert_eq!(found(&set, "a_b=c"), "api.a_b");
    assert_eq!(found(&set, "a=b_c"), "api.a_b_c");
}

#[test]
fn a_value_without_a_limit_exempts() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: ip, rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: ip, value: 10.0.0.1 }
",
    );
    assert_eq!(found(&set, "ip=10.0.0.1"), "none");
    assert_eq!(found(&set, "ip=10.0.0.2"), "api.ip");
}

#[test]
fn scalars_are_the_text_that_stands_there() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: 404, value: 1.0, rate_limit: { unit: second, requests_per_unit: 1 } }
  - { key: k, value: 0x1F, rate_limit: { unit: second, requests_per_unit: 0x10 } }
  - { key: k, value: true, rate_limit: { unit: second, requests_per_unit: 1_000 } }
  - { key: k, value: no, rate_limit: { unit: second, requests_per_unit: +7 } }
  - { key: k, value: 007, rate_limit: { unit: SECOND, requests_per_unit: 0o17 } }
  - { key: k, value: \"\", rate_limit: { unit: second, requests_per_unit: 0b11 } }
",
    );
    for (descriptor, requests) in
        [("404=1.0", 1), ("k=0x1F", 16), ("k=true", 1_000), ("k=no", 7), ("k=007", 15), ("k=anything", 3)]
    {
        let rule = find(&set, descriptor).unwrap_or_else(|| panic!("{descriptor}"));
        let Allowance::Limited { requests_per_unit, .. } = rule.limits[0].allowance else { panic!() };
        assert_eq!(requests_per_unit, requests, "{descriptor}");
    }
}

#[test]
fn anchors_and_merge_keys_work_and_what_stands_closer_wins() {
    let set = rules(
        "
domain: api
descriptors:
  - key: a
    rate_limit: &slow { unit: hour, requests_per_unit: 5, burst: 2 }
  - key: b
    rate_limit: *slow
  - key: c
    rate_limit: { <<: *slow, requests_per_unit: 50 }
  - key: d
    rate_limit:
      <<: [ { unit: day }, *slow ]
",
    );
    let shown = |descriptor: &str| match find(&set, descriptor).unwrap().limits[0].allowance {
        Allowance::Limited { limit, requests_per_unit, unit } => {
            format!("{requests_per_unit}/{unit} {}", limit.burst())
        }
        Allowance::Unlimited => "unlimited".into(),
    };
    assert_eq!(shown("a=1"), "5/hour 2");
    assert_eq!(shown("b=1"), "5/hour 2");
    assert_eq!(shown("c=1"), "50/hour 2");
    assert_eq!(shown("d=1"), "5/day 2");
}

#[test]
fn the_keys_of_the_reference_are_understood() {
    let set = rules(
        "
domain: api
descriptors:
  - key: a
    detailed_metric: yes
    value_to_metric: on
    quota_mode: True
    rate_limit: { name: wide, unit: hour, requests_per_unit: 5, replaces: [ { name: narrow } ] }
    metadata: { team: x, list: [1, 2.5, yes, ~, { deep: text }] }
  - { key: b, shadow_mode: true, rate_limit: { unlimited: true } }
  - { key: f, value: 'files/*', share_threshold: true, descriptors: [ { key: m, rate_limit: { unit: day, requests_per_unit: 1 } } ] }
",
    );
    let a = find(&set, "a=1").unwrap();
    assert_eq!(
        (&*a.limits[0].name, &*a.limits[0].limit_id, a.mode, a.told_values.contains(&true)),
        ("wide", "wide", crate::decision::Mode::Quota, true)
    );
    assert_eq!(a.limits[0].replaces.iter().map(|name| &**name).collect::<Vec<_>>(), ["narrow"]);
    let Some(Any::Map(metadata)) = &a.metadata else { panic!("{:?}", a.metadata) };
    assert_eq!(metadata["team"], Any::Text("x".into()));
    let Any::List(list) = &metadata["list"] else { panic!() };
    assert_eq!(list[..4], [Any::Number(1.0), Any::Number(2.5), Any::Bool(true), Any::Null]);
    let b = find(&set, "b=1").unwrap();
    assert_eq!((b.limits[0].allowance, b.mode), (Allowance::Unlimited, crate::decision::Mode::Shadow));
    let f = find(&set, "f=files/x,m=get").unwrap();
    assert_eq!(
        f.shared.iter().map(|shared| shared.as_deref()).collect::<Vec<_>>(),
        [Some(&b"files/*"[..]), None]
    );
    assert_eq!(&*f.limits[0].limit_id, "day");
}

#[test]
fn files_share_a_domain_when_their_rules_do_not_clash() {
    let one =
        "domain: api\ndescriptors:\n  - { key: a, rate_limit: { unit: second, requests_per_unit: 1 } }\n";
    let two =
        "domain: api\ndescriptors:\n  - { key: b, rate_limit: { unit: second, requests_per_unit: 1 } }\n";
    let set = RuleSet::from_texts([("one.yaml", one), ("two.yaml", two)], 0).unwrap();
    assert_eq!((set.len(), set.files(), set.domains().count()), (2, 2, 1));

    let error = RuleSet::from_texts([("one.yaml", one), ("two.yaml", one)], 0).unwrap_err();
    assert_eq!(
        listed(&error),
        "two.yaml:3:5 descriptors[0]: key `a` stands here twice: the other one is at one.yaml:3:5. Put their rules together\n"
    );
}

#[test]
fn broken_yaml_is_told_with_its_place() {
    for (text, begins) in [
        ("domain: api\ndescriptors: [\n", "2:14: not YAML: "),
        ("domain: \"api\n", "2:1: not YAML: "),
        ("domain: api\n\tx: 1\n", "1:9: not YAML: "),
        ("domain: *nobody\n", "1:9: not YAML: "),
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].starts_with(begins), "{text:?}: {found:?}");
    }
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once() {
    let bad = "domain: api\ndescriptors:\n  - key: ''\n    rate_limit: { unit: hors, requests_per_unit: -1, brst: 2 }\n  - vale: x\n";
    let worse = "domain: [\n";
    let error = RuleSet::from_texts([("bad.yaml", bad), ("worse.yaml", worse)], 0).unwrap_err();
    let places: Vec<String> =
        listed(&error).lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(
        places,
        [
            "bad.yaml:3:10",
            "bad.yaml:4:25",
            "bad.yaml:4:50",
            "bad.yaml:4:54",
            "bad.yaml:5:5",
            "bad.yaml:5:5",
            "worse.yaml:1:9:"
        ],
        "{}",
        listed(&error)
    );
    assert_eq!(error.to_string(), "7 errors in the rule files");
}

#[test]
fn alias_bombs_and_deep_nesting_are_refused_not_expanded() {
    // Nine levels of nine aliases each: 400 million nodes.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let below = format!("*a{}, ", level - 1).repeat(9);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    assert_eq!(problems(&bomb).len(), 1);
    assert!(problems(&bomb)[0].ends_with("the aliases up to here expand to many times what is written"));

    // The same, of merge keys.
    let mut bomb = "a0: &a0 { key: x }\n".to_owned();
    for level in 1..40 {
        bomb.push_str(&format!("a{level}: &a{level} {{ <<: [*a{0}, *a{0}] }}\n", level - 1));
    }
    assert!(problems(&bomb)[0].ends_with("the aliases up to here expand to many times what is written"));

    // Deep by itself, and deep by stacking aliases.
    for deep in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
        assert!(problems(&deep)[0].ends_with("nested more than 128 levels deep"), "{:?}", problems(&deep));
    }
    let mut stacked = "a0: &a0 x\n".to_owned();
    for level in 1..10_000 {
        stacked.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
    }
    assert!(problems(&stacked)[0].ends_with("nested more than 128 levels deep"), "{:?}", problems(&stacked));
    assert!(problems("a: &a [*a]\n")[0].contains("stands inside what it stands for"));
}

#[test]
fn an_alias_bomb_in_metadata_is_read_at_the_cost_of_what_it_says() {
    // A hundred thousand nodes, aliased below a hundred levels: each is read once, not once for each level.
    let mut text =
        "domain: api\ndescriptors:\n  - key: a\n    metadata:\n      a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            .to_owned();
    for level in 1..4 {
        let below = format!("*a{}, ", level - 1).repeat(9);
        text.push_str(&format!("      a{level}: &a{level} [{below}]\n"));
    }
    text.push_str(&format!("      deep: {}*a3{}\n", "[".repeat(90), "]".repeat(90)));
    assert_eq!(rules(&text).len(), 0);

    let mut bomb = text;
    for level in 4..9 {
        let below = format!("*a{}, ", level - 1).repeat(9);
        bomb.push_str(&format!("      a{level}: &a{level} [{below}]\n"));
    }
    assert!(problems(&bomb)[0].ends_with("the aliases up to here expand to many times what is written"));
}

#[test]
fn metadata_may_have_any_keys_and_tags_of_somebody_elses_are_passed_over() {
    let set = rules(
        "
domain: !name api
descriptors:
  - key: a
    rate_limit: { unit: day, requests_per_unit: !!int \"5\" }
    metadata: { 1: x, true: !!str 5, ~: !other 6, 1.5: 7 }
",
    );
    let Some(Any::Map(metadata)) = &find(&set, "a=1").unwrap().metadata else { panic!() };
    let shown: Vec<_> = metadata.iter().map(|(key, value)| format!("{key}: {value:?}")).collect();
    assert_eq!(shown, ["1: Text(\"x\")", "1.5: Number(7.0)", "true: Text(\"5\")", "~: Text(\"6\")"]);
}

#[test]
fn what_is_far_too_long_is_told_of_shortly() {
    let long = "x".repeat(1 << 20);
    for text in [
        format!("domain: api\n{long}: 1\n"),
        format!(
            "domain: api\ndescriptors:\n  - {{ key: a, rate_limit: {{ unit: {long}, requests_per_unit: 1 }} }}\n"
        ),
        format!(
            "domain: api\ndescriptors:\n  - {{ key: a, rate_limit: {{ unit: day, requests_per_unit: {long} }} }}\n"
        ),
    ] {
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].len() < 300, "{} bytes", found[0].len());
    }
}

#[test]
fn a_reload_moves_the_change_of_no_limit_that_stayed_the_same() {
    let text = |requests: u32| {
        format!(
            "domain: api\ndescriptors:\n  - {{ key: a, rate_limit: {{ unit: hour, requests_per_unit: {requests} }} }}\n"
        )
    };
    let load = |requests: u32, now: Micros| {
        RuleSet::from_texts([("api.yaml", text(requests).as_str())], now).unwrap()
    };
    let since =
        |set: &RuleSet| find(set, "a=1").unwrap().limits[0].allowance.limit().unwrap().in_force_since();
    let first = load(60, 1_000);
    let mut same = load(60, 2_000);
    same.succeed(&first);
    assert_eq!(since(&same), 1_000);
    let mut changed = load(61, 3_000);
    changed.succeed(&same);
    assert_eq!(since(&changed), 3_000);
    let mut back = load(60, 4_000);
    back.succeed(&changed);
    assert_eq!(since(&back), 4_000);
}

#[test]
fn honest_files_of_a_hundred_thousand_rules_are_read_also_with_anchors() {
    let mut text = "domain: api\nx: &l { unit: minute, requests_per_unit: 5 }\n".to_owned();
    text = text.replace("x: ", "descriptors:\n  - key: base\n    rate_limit: ");
    for n in 0..100_000 {
        text.push_str(&format!("  - {{ key: user, value: u{n}, rate_limit: *l }}\n"));
    }
    let set = rules(&text);
    assert_eq!(set.len(), 100_001);
    assert_eq!(found(&set, "user=u99999"), "api.user_u99999");
}

#[test]
fn many_wildcards_are_found_in_the_order_of_the_file() {
    let mut text = "domain: api\ndescriptors:\n".to_owned();
    for n in 0..20_000 {
        text.push_str(&format!(
            "  - {{ key: p, value: '/v{n}/*', rate_limit: {{ unit: second, requests_per_unit: 1 }} }}\n"
        ));
    }
    text.push_str("  - { key: p, value: '/v1*', rate_limit: { unit: second, requests_per_unit: 1 } }\n");
    let set = rules(&text);
    assert_eq!(found(&set, "p=/v12345/x"), "api.p_/v12345/*");
    assert_eq!(found(&set, "p=/v123456/x"), "api.p_/v1*");
    assert_eq!(found(&set, "p=/w"), "none");
}

#[test]
fn many_wildcards_that_differ_in_the_middle_only_are_found_in_the_order_of_the_file() {
    let mut text = "domain: api\ndescriptors:\n".to_owned();
    let mut rule = |pattern: &str| {
        text.push_str(&format!(
            "  - {{ key: p, value: '{pattern}', rate_limit: {{ unit: second, requests_per_unit: 1 }} }}\n"
        ));
    };
    for n in 0..20_000 {
        rule(&format!("*<{n}>*"));
        rule(&format!("*<{n}>*<x>*"));
    }
    rule("*");
    rule("*never*");
    let set = rules(&text);
    for (value, label) in [
        ("a<19999>b", "api.p_*<19999>*"),
        ("<7><5>", "api.p_*<5>*"),
        ("<5><x>", "api.p_*<5>*"),
        ("<nothing>", "api.p_*"),
        ("never", "api.p_*"),
    ] {
        assert_eq!(found(&set, &format!("p={value}")), label);
    }
}

#[test]
fn replaces_works_across_the_request_and_what_is_replaced_still_replaces() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: a, rate_limit: { name: a, unit: hour, requests_per_unit: 1 } }
  - { key: b, rate_limit: { name: b, unit: hour, requests_per_unit: 1, replaces: [ { name: a } ] } }
  - { key: c, rate_limit: { unit: hour, requests_per_unit: 1, replaces: [ { name: b }, { name: nobody } ] } }
",
    );
    let applies = |keys: &[&str]| -> String {
        let entries: Vec<[Entry<'_>; 1]> =
            keys.iter().map(|key| [Entry { key: key.as_bytes(), value: b"1" }]).collect();
        let resolved = set.domain("api").unwrap().resolve(entries.iter().map(|entries| Some(&entries[..])));
        let shown = |rule: &Option<&Rule>| match rule {
            None => '-',
            Some(rule) if resolved.is_replaced(&rule.limits[0]) => 'x',
            Some(_) => '!',
        };
        resolved.rules.iter().map(shown).collect()
    };
    assert_eq!(applies(&["a"]), "!");
    assert_eq!(applies(&["a", "b"]), "x!");
    assert_eq!(applies(&["b", "a", "z"]), "!x-");
    assert_eq!(applies(&["a", "b", "c"]), "xx!");
}

#[test]
fn a_rules_id_depends_on_what_it_limits_and_not_on_where_it_stands() {
    let one = rules(
        "domain: api\ndescriptors:\n  - { key: a, rate_limit: { unit: hour, requests_per_unit: 1 } }\n",
    );
    let moved = rules(
        "domain: api\ndescriptors:\n  - { key: b }\n  - { key: a, rate_limit: { unit: hour, requests_per_unit: 9 } }\n",
    );
    let renamed = rules(
        "domain: api\ndescriptors:\n  - { key: a, rate_limit: { name: x, unit: hour, requests_per_unit: 1 } }\n",
    );
    let id = |set: &RuleSet| find(set, "a=1").unwrap().limits[0].id;
    assert_eq!(id(&one), id(&moved));
    assert_ne!(id(&one), id(&renamed));
}

#[test]
fn a_directory_is_read_in_order_without_dot_files_and_through_links() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let write = |name: &str, domain: &str| {
        let file = path.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, format!("domain: {domain}\n")).unwrap();
    };
    assert!(matches!(load(&path.join("missing"), 0), Err(LoadError::Nothing { .. })));
    assert!(matches!(load(path, 0), Err(LoadError::Nothing { .. })));
    write("b.yaml", "b");
    write("a/c.yml", "c");
    write("notes.txt", "not this");
    write(".hidden.yaml", "nor this");
    write("..data/real.yaml", "linked");
    std::os::unix::fs::symlink("..data/real.yaml", path.join("link.yaml")).unwrap();
    let set = load(path, 0).unwrap();
    assert_eq!(set.domains().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "c", "linked"]);
    assert_eq!(load(&path.join("b.yaml"), 0).unwrap().files(), 1);

    let large = std::fs::File::create(path.join("large.yaml")).unwrap();
    large.set_len(MAX_FILE_BYTES + 1).unwrap();
    // Links back up are not followed: what they lead to has been read.
    std::os::unix::fs::symlink(".", path.join("loop")).unwrap();
    std::os::unix::fs::symlink("..", path.join("a/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere.yaml", path.join("z.yaml")).unwrap();
    std::fs::write(path.join("bytes.yaml"), b"domain: x\nd: \xff\n").unwrap();
    let error = listed(&load(path, 0).unwrap_err());
    assert!(error.contains("z.yaml:1:1: cannot be read: "), "{error}");
    assert!(error.contains("bytes.yaml:2:4: not UTF-8 from here on"), "{error}");
    assert!(error.contains("large.yaml:1:1: 67108865 bytes long, and 67108864 at most are read"), "{error}");
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn an_explanation_follows_the_lookup_and_says_why_not() {
    let set = rules(
        "
domain: api
descriptors:
  - key: user
    rate_limit: { unit: second, requests_per_unit: 1 }
    descriptors:
      - { key: path, value: '/login*', rate_limit: { unit: second, requests_per_unit: 1 } }
      - { key: path, value: /health }
  - { key: user, value: root, rate_limit: { unit: second, requests_per_unit: 1 } }
",
    );
    let explain = |descriptor: &[(&str, &str)]| {
        let entries: Vec<Entry<'_>> = descriptor
            .iter()
            .map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() })
            .collect();
        let domain = set.domain("api").unwrap();
        let explanation = domain.explain(&entries);
        assert_eq!(
            explanation.rule.map(|rule| rule.id),
            domain.find(&entries).map(|rule| rule.id),
            "explains what the lookup does"
        );
        explanation
    };
    let matched = explain(&[("user", "rot"), ("path", "/login/x")]);
    assert_eq!(matched.rule.map(|rule| &*rule.label), Some("api.user.path_/login*"));
    assert_eq!(matched.steps[0].matched.as_ref().unwrap().0, "`user` with any value");
    assert_eq!(matched.steps[0].near, ["value `root` is another value (api.yaml:9:5)"]);
    assert_eq!(matched.steps[1].matched.as_ref().unwrap().0, "`path` with value `/login*`");
    assert!(matched.steps[1].near[0].contains("/health"));

    let why_not = |descriptor: &[(&str, &str)]| explain(descriptor).why_not.unwrap();
    assert_eq!(why_not(&[]), "the descriptor has no entries");
    assert_eq!(why_not(&[("ip", "x")]), "no rule on this level has the key `ip`; there is `user`");
    assert_eq!(
        why_not(&[("user", "a"), ("path", "/x")]),
        "no rule with key `path` matches this value, and none has the key without a value"
    );
    assert_eq!(
        why_not(&[("user", "a"), ("path", "/health")]),
        "the rule has no limit, so it exempts what it matches"
    );
    assert_eq!(
        why_not(&[("user", "root"), ("path", "/x")]),
        "the rule ends here, and the descriptor has another entry"
    );
}
