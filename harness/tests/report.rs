//! The page for people: its data says what the chains say, nothing that a guest writes gets out of it, and a browser draws it.

mod support;

use std::path::PathBuf;
use std::process::Command;

use guest_tests::Image;
use harness::report::Page;
use harness::{Machine, Mmu, Report, Verdict, judge};
use serde_json::Value;
use support::ElfBuilder;

/// `mov al, 0x10; out 0xf4, al; jmp $`
const PASS: &[u8] = &[0xb0, 0x10, 0xe6, 0xf4, 0xeb, 0xfe];

fn built_in(name: &str) -> Image {
    let guest = guest_tests::built_in().find(|guest| guest.name == name).expect("a built-in guest");
    Image::parse(guest.elf).expect("a good ELF file")
}

/// The page of a guest on a machine, its data, and what was found.
fn page_of(name: &str, mmu: Mmu) -> (String, Value, Report) {
    let mut page = Page::default();
    let report = page.run_guest(name, &built_in(name), mmu).unwrap();
    let html = page.html();
    (html.clone(), data(&html)[0].clone(), report)
}

/// What the script element holds.
fn data(html: &str) -> Value {
    let (_, rest) = html.split_once("<script type=\"application/json\" id=\"data\">").expect("there is data");
    let (json, _) = rest.split_once("</script>").expect("it ends");
    serde_json::from_str(json).expect("it is JSON")
}

/// A column's numbers: base64 VLQ, pairs of a number with its sign lowest and how often it comes.
fn column(text: &Value) -> Vec<i128> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut raw: Vec<u128> = Vec::new();
    let (mut number, mut shift) = (0_u128, 0);
    for digit in text.as_str().expect("a column is text").bytes().map(value) {
        number |= u128::from(digit & 31) << shift;
        shift += 5;
        if digit < 32 {
            raw.push(number);
            (number, shift) = (0, 0);
        }
    }
    let signed = |raw: u128| if raw.is_multiple_of(2) { (raw / 2) as i128 } else { -((raw / 2 + 1) as i128) };
    raw.chunks(2).flat_map(|pair| vec![signed(pair[0]); pair[1] as usize]).collect()
}

/// GPA, HVA, HPA and the size of the leaf.
type Place = (u64, Option<u64>, Option<u64>, Option<String>);

/// Where the data has a page.
fn find(memory: &Value, gva: u64) -> Option<Place> {
    let (kinds, pages) = (column(&memory["kind"]), column(&memory["pages"]));
    let place = |name: &str| -> Vec<u64> {
        let mut end = 0;
        let ends = column(&memory[name]).into_iter().zip(&pages);
        ends.map(|(difference, pages)| {
            let first = end + difference;
            end = first + pages;
            first as u64
        })
        .collect()
    };
    let (gvas, gpas, hvas, hpas) = (place("gva"), place("gpa"), place("hva"), place("hpa"));
    let page = gva >> 12;
    let piece =
        (0..gvas.len()).find(|&piece| (gvas[piece]..gvas[piece] + pages[piece] as u64).contains(&page))?;
    let kind = &memory["kinds"][kinds[piece] as usize];
    let at = |first: u64| (first + page - gvas[piece]) << 12 | gva & 0xfff;
    let hva = kind["range"].as_u64().filter(|range| !memory["ranges"][*range as usize]["hva"].is_null());
    let hpa = kind["hpa"].as_bool().expect("a flag");
    let size = kind["second"]["size"].as_str().map(str::to_owned);
    Some((at(gpas[piece]), hva.map(|_| at(hvas[piece])), hpa.then(|| at(hpas[piece])), size))
}

#[test]
fn the_data_has_every_page_where_its_chain_has_it() {
    for (name, mmu) in [
        ("first_touch", Mmu::Ept),
        ("alias_gpa", Mmu::Npt),
        ("huge_page", Mmu::Shadow),
        ("rom_write", Mmu::Ept),
    ] {
        let (_, run, report) = page_of(name, mmu);
        assert!(!report.chains.is_empty());
        for chain in &report.chains {
            let found = find(&run["memory"], chain.gva.0).expect("the guest's tables map it");
            let chained = (
                chain.gpa.unwrap().0,
                chain.hva.map(|hva| hva.0),
                chain.hpa.map(|hpa| hpa.0),
                chain.leaf.as_ref().map(|leaf| leaf.size.to_string()),
            );
            assert_eq!(found, chained, "{name} on {mmu}, GVA {}", chain.gva);
        }
        assert_eq!(find(&run["memory"], 0x7000_0000_0000), None);
    }
}

#[test]
fn faults_are_told_one_by_one_and_in_order() {
    for mmu in [Mmu::Ept, Mmu::Npt, Mmu::Shadow] {
        let (_, run, report) = page_of("first_touch", mmu);
        let events = &run["fault_events"];
        let (at, took, pages) = (column(&events["at"]), column(&events["took"]), column(&events["page"]));
        assert_eq!(
            (at.len() as u64, at.len(), at.len()),
            (report.violations.unwrap(), took.len(), pages.len())
        );
        assert!(at.iter().all(|since| *since >= 0) && took.iter().all(|took| *took > 0));
        let touched: Vec<_> = pages
            .iter()
            .scan(0, |page, step| {
                *page += step;
                Some(*page << 12)
            })
            .collect();
        let first = i128::from(report.chains[0].gva.0);
        // The buffer is written from its first page on; a shadow maps up to eight at a time.
        assert!(touched.contains(&first), "{mmu}: {touched:x?}");
        assert!(run["exits"]["counts"][0] == serde_json::json!(["io", 1]), "{}", run["exits"]);
    }
}

#[test]
fn faults_and_exits_have_the_same_clock_however_early_the_recording_began() {
    let image = built_in("first_touch");
    let mut machine = Machine::build(image.clone(), Mmu::Ept.create_vm(&image).unwrap()).unwrap();
    machine.record();
    // All of another run is in between.
    page_of("touch_random", Mmu::Ept);
    let run = machine.run().unwrap();
    let report = harness::judge("first_touch", Mmu::Ept, &mut machine, run).unwrap();
    let mut page = Page::default();
    page.add_machine(&report, &mut machine).unwrap();
    let run = &data(&page.html())[0];
    let last = |of: &Value| column(&of["at"]).iter().sum::<i128>();
    let (faults, exits, whole) = (last(&run["fault_events"]), last(&run["exits"]), &run["elapsed_ns"]);
    assert!(0 < faults && faults < exits, "the guest ends with an exit: {faults}, {exits}");
    assert!(exits <= whole.as_i64().unwrap().into(), "{exits} of {whole}");
}

#[test]
fn nothing_is_recorded_unless_somebody_asks() {
    let image = built_in("first_touch");
    let mut machine = Machine::build(image.clone(), Mmu::Ept.create_vm(&image).unwrap()).unwrap();
    let run = machine.run().unwrap();
    assert!(run.exits.times.is_empty() && run.exits.total() == 1);
    assert!(matches!(machine.host().faults(), vcpu::Witness::NotShown(_)));
}

#[test]
fn a_broken_link_is_named_with_its_page() {
    let image = built_in("first_touch");
    let manifest = image.manifest().clone();
    let mut broken = manifest.clone();
    broken.expect.pages[0].holds = Some(guest_tests::Holds::Value(7));
    let image = image.with_manifest(broken).unwrap();
    let mut machine = Machine::build(image.clone(), Mmu::Ept.create_vm(&image).unwrap()).unwrap();
    let run = machine.run().unwrap();
    let report = judge("lying", Mmu::Ept, &mut machine, run).unwrap();
    let mut page = Page::default();
    page.add_machine(&report, &mut machine).unwrap();
    let run = &data(&page.html())[0];
    assert_eq!(run["verdict"], "fail");
    let first = &run["broken"][0];
    assert_eq!(
        (&first["gva"], &first["link"], &first["what"]),
        (&"0x101000".into(), &"GPA -> HVA".into(), &"content".into())
    );
    assert!(first["how"].as_str().unwrap().starts_with("expected 0x7, found 0x101000 at 0x"), "{first}");
}

/// A guest whose every name is an attack.
fn hostile() -> Image {
    const ATTACK: &str = "</script><script>document.documentElement.dataset.attack = 1</script><img src=x onerror=document.title=1>";
    let manifest = format!(
        "summary = '{ATTACK}'\n[[region]]\nname = '{ATTACK}'\nkind = 'ram'\ngpa = 0x2000000\nsize = '64K'\n\
         [expect]\nconsole = '{ATTACK}'"
    );
    Image::parse(ElfBuilder::new(PASS).manifest(&manifest).build()).unwrap()
}

#[test]
fn what_a_guest_writes_stays_text() {
    let mut page = Page::default();
    let report = page.run_guest("<b>", &hostile(), Mmu::Ept).unwrap();
    let html = page.html();
    assert!(!html.contains("<script>document.documentElement"));
    assert_eq!(html.matches("</script>").count(), 2, "the page's own");
    assert_eq!(html.matches("<img").count(), 0);
    assert_eq!(data(&html)[0]["reasons"][0], report.reasons[0]);
}

#[test]
fn the_page_asks_nothing_of_a_network() {
    let (html, _, _) = page_of("first_touch", Mmu::Ept);
    let without = html.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "src=", "@import", "url(h", "fetch(", "XMLHttpRequest", "WebSocket"] {
        assert!(!without.contains(word), "{word}");
    }
    assert!(html.contains("default-src 'none'"));
}

/// What a browser makes of a page after `script` has been let loose on it; `None` where there is no browser.
fn browse(name: &str, html: &str, script: &str) -> Option<String> {
    const WATCH: &str = "<head><script>addEventListener('error', (event) => \
        document.documentElement.setAttribute('data-error', event.message));</script>";
    let watched = html.replacen("<head>", WATCH, 1);
    let watched = watched.replacen("</body>", &format!("<script>{script}</script></body>"), 1);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.html"));
    std::fs::write(&path, watched).expect("the folder for temporary files is writable");
    let mut chromium = Command::new("chromium");
    chromium.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1280,900",
        // All guests in a moment are more pages than a person looks at.
        "--disable-ipc-flooding-protection",
        "--enable-logging=stderr",
        "--timeout=20000",
        "--dump-dom",
    ]);
    let profile = path.with_extension(format!("{}.profile", std::process::id()));
    chromium.arg(format!("--user-data-dir={}", profile.display()));
    let output = match chromium.arg(format!("file://{}", path.display())).output() {
        Ok(output) => output,
        Err(why) => {
            let required = std::env::var("MEMVIRT_REQUIRE").unwrap_or_default();
            assert!(
                !required.split(',').any(|name| name == "chromium"),
                "MEMVIRT_REQUIRE names chromium: {why}"
            );
            println!("not checked: chromium: {why}");
            return None;
        }
    };
    std::fs::remove_dir_all(&profile).expect("the browser has ended");
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!log.contains("CONSOLE"), "{log}");
    let (_, root) = dom.split_once("<html").expect("a document");
    let (root, _) = root.split_once('>').expect("an element");
    assert!(!root.contains("data-error") && !root.contains("data-attack"), "{root}");
    Some(dom.into_owned())
}

#[test]
fn a_browser_draws_each_guest_on_each_machine() {
    let mut page = Page::default();
    for guest in guest_tests::built_in() {
        let image = Image::parse(guest.elf).unwrap();
        for mmu in [Mmu::Ept, Mmu::Shadow] {
            page.run_guest(guest.name, &image, mmu).unwrap();
        }
    }
    // All of them, each in the next colour, with the walk of their first page; nothing is wider than its place, no name
    // of the timeline over another, and its times are round.
    let script = "
        const schemes = Object.keys(SCHEMES);
        for (const [at, run] of RUNS.entries()) {
            const scheme = schemes[at % schemes.length];
            Object.assign(state, { guest: run.guest, mmu: run.mmu, part: null, page: null, scheme });
            drawMain();
            const first = piecesOf(run).gva[0];
            for (const box of document.querySelectorAll('main .scroll')) {
                const out = box.scrollWidth - box.clientWidth;
                if (out > 1) throw new Error(`${run.guest} on ${run.mmu}: ${box.firstChild.className.baseVal ?? box.firstChild.className} is ${out} too wide`);
            }
            const names = [...document.querySelectorAll('.tick.row')].map((name) => Number(name.getAttribute('y')));
            names.forEach((y, at) => {
                if (at && y - names[at - 1] < 11) throw new Error(`${run.guest} on ${run.mmu}: a name over another`);
            });
            const times = [...document.querySelectorAll('.tick:not(.row)')].map((time) => time.textContent);
            if (times.length && (times.length > 9 || times.some((text) => !/^(0|([1-9][0-9]?0*|[1-9][.][1-9]) (s|ms|µs|ns))$/.test(text))))
                throw new Error(`${run.guest} on ${run.mmu}: ${times}`);
            showPage(first);
            if (!document.querySelector('#walk .chain')) throw new Error(run.guest + ': no walk');
            if (!document.querySelector('.mark-line').getAttribute('d')) throw new Error(run.guest + ': no mark');
            zoomTo([first, first]);
        }
        location.hash = '#first_touch/shadow/0x101000';";
    let Some(dom) = browse("all_guests", &page.html(), script) else { return };
    assert!(dom.contains("first_touch <small>on shadow</small>"));
    assert!(dom.contains("The page at 0x101000"));
    assert!(
        dom.contains(">GVA 0x101000 → GPA 0x101000 (ram) → HVA 0x"),
        "marked in the map, and told below it"
    );
    assert!(dom.contains("by the second level (shadow): a 4K leaf, rwxu"));
}

#[test]
fn a_browser_shows_the_walk_of_a_page_with_its_entries() {
    for mmu in [Mmu::Ept, Mmu::Npt, Mmu::Shadow] {
        let mut page = Page::default();
        let report = page.run_guest("huge_page", &built_in("huge_page"), mmu).unwrap();
        let chain = report.chains.iter().find(|chain| chain.gva.0 == 0x4010_0000).unwrap();
        let Some(dom) = browse(&format!("walk_{mmu}"), &page.html(), "showPage(0x40100);") else { return };
        let leaf = chain.leaf.as_ref().unwrap();
        // The page puts each entry together itself; the chain has read it.
        for step in chain.guest_walk.iter().chain(leaf.path.iter()) {
            let cells =
                format!("{:#x} [{}]</td><td class=\"mono\">{:#018x}<", step.table, step.index, step.entry);
            assert!(dom.contains(&cells), "{mmu}: {cells}");
        }
        assert!(dom.contains("GPA 0x500000") && dom.contains("a 2M page, rwxu") && dom.contains(">PS<"));
    }
}

/// `mov edi, 0x200000; mov ecx, PAGES; 1: mov [rdi], rdi; add rdi, 0x1000; dec ecx; jnz 1b; mov al, 0x10; out 0xf4, al`
fn sweep(pages: u32) -> Image {
    let mut code = vec![0xbf, 0, 0, 0x20, 0, 0xb9];
    code.extend(pages.to_le_bytes());
    code.extend([
        0x48, 0x89, 0x3f, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xf2, 0xb0, 0x10, 0xe6, 0xf4,
    ]);
    let memory = (u64::from(pages) >> 8) + 4;
    let manifest = format!(
        "[machine]\nmemory = '{memory}M'\npage = '2M'\n[budget]\nms = 600000\ninstructions = 100000000\n"
    );
    Image::parse(ElfBuilder::new(&code).manifest(&manifest).build()).unwrap()
}

/// With `MEMVIRT_PAGES=1000000` it is that many.
#[test]
fn a_browser_draws_very_many_pages_that_are_scattered_over_the_host() {
    let pages = std::env::var("MEMVIRT_PAGES").map_or(1 << 16, |pages| pages.parse().expect("a number"));
    let mut page = Page::default();
    let report = page.run_guest("sweep", &sweep(pages), Mmu::Ept).unwrap();
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.reasons);
    let html = page.html();
    assert!(html.len() < 200_000 + 10 * pages as usize, "{} bytes for {pages} pages", html.len());
    let last = 0x1ff + pages;
    let Some(dom) = browse("sweep", &html, &format!("showPage({last}); zoomTo([{last} - 99, {last}]);"))
    else {
        return;
    };
    assert!(dom.contains(&format!("The page at {:#x}", u64::from(last) << 12)));
    assert!(dom.contains("4K: 100 pages"), "the part that is zoomed to");
}

#[test]
fn a_browser_does_not_take_what_is_not_shown_for_missing() {
    let mut page = Page::default();
    page.run_guest("first_touch", &built_in("first_touch"), Mmu::Ept).unwrap();
    // As where the host's own tables cannot be read.
    let script = "const [run] = RUNS; run.memory.second = null; delete run.pieces;
        run.memory.kinds.forEach((kind) => (kind.second = null)); drawMain(); showPage(0x101);";
    let Some(dom) = browse("not_shown", &page.html(), script) else { return };
    assert!(dom.contains("leaf not shown: ") && dom.contains("The second level is not shown here."));
}

#[test]
fn a_browser_leaves_hostile_names_alone() {
    let mut page = Page::default();
    page.run_guest("<b>", &hostile(), Mmu::Npt).unwrap();
    let Some(dom) = browse("hostile", &page.html(), "") else { return };
    assert!(dom.contains("&lt;img src=x onerror=document.title=1&gt;"));
}
