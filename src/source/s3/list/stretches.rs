//! What is left to list of a prefix, and who lists which part of it.
//!
//! The keys below a prefix are divided into *stretches*, each behind one key and up to another. A
//! stretch is listed page by page, as a prefix is; several are listed at once. It all begins with one
//! stretch, and whoever is idle begins another in the middle of what is left of one. So every key is
//! in one stretch at every moment, and is handed over once, whatever is written meanwhile.
//!
//! - **A stretch begins with its first page**, not with the request for it. Until that has come, and
//!   is right, the stretch before goes on to its own end: an endpoint that knows no `start-after`, or
//!   gives an error for it, costs time and no key.
//! - **Where stretches begin** is asked for: the directories below one, by a listing with a delimiter.
//!   That is advice, and nothing is lost if it is denied, or wrong.
//! - **Who has asked for few pages asks for few more**: half as many requests are under way as pages
//!   have come. So what is short costs no request more.
//! - **Order**: S3 lists in the order of the keys' bytes. Endpoints that go by UTF-16 differ where a
//!   letter from U+E000 on meets one above U+FFFF: no stretch begins or ends there, and both orders
//!   are right. An endpoint with no order at all is listed in turn.

use std::collections::{BTreeMap, BTreeSet};

use super::super::page::{Names, Page, Unusable};
use crate::object::Object;

/// How many requests of one listing are under way.
pub(super) const AT_ONCE: usize = 8;

/// So many pages are left to who lists them: the end of a stretch is a page that is asked for twice.
const LEFT_ALONE: usize = 8;

/// How often directories are asked for without finding any, at first; and once more for each so many
/// pages.
const QUESTIONS: usize = 4;
const PAGES_FOR_ANOTHER: usize = 128;

/// How many stretches may fail to begin before no more is tried.
const FAILURES: usize = 2;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// The next page of a stretch.
    Next { stretch: usize, token: Option<String> },
    /// The first page of a stretch behind this key.
    Behind(String),
    /// The names of the directories right below a directory (with its `/`), behind a key.
    Names { directory: String, after: String },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stretches {
    prefix: String,
    /// Stretches that were begun.
    all: Vec<Stretch>,
    /// Where a stretch may begin, sorted: directories, without the `/`, so that each is whole in one.
    points: Vec<String>,
    /// Where one is about to.
    pending: BTreeSet<String>,
    /// Directories (with their `/`) that were asked for, and the last point that they told; `None`: all.
    told: BTreeMap<String, Option<String>>,
    under_way: usize,
    pages: usize,
    /// How many were for nothing.
    questions: usize,
    is_asking: bool,
    /// Whether directories are told.
    may_ask: bool,
    failures: usize,
    /// Whether more stretches may begin.
    divides: bool,
    /// Pages where points are known, and how many of the points they passed.
    paced: (usize, usize),
}

#[derive(Debug, Clone)]
struct Stretch {
    /// What has come so far goes up to here; empty at the beginning.
    after: String,
    /// The last key that can be in it; all there are if `None`.
    end: Option<String>,
    state: State,
    /// The innermost directory that holds the last page, and the key before.
    inside: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The next page is to be asked for, with this token.
    Due(Option<String>),
    Asked,
    Done,
}

impl Stretches {
    /// Nothing is listed yet.
    pub(super) fn new(prefix: &str) -> Self {
        let first = Stretch {
            after: String::new(),
            end: None,
            state: State::Due(None),
            inside: prefix.to_owned(),
        };
        Self {
            prefix: prefix.to_owned(),
            all: vec![first],
            points: Vec::new(),
            pending: BTreeSet::new(),
            told: BTreeMap::new(),
            under_way: 0,
            pages: 0,
            questions: 0,
            is_asking: false,
            may_ask: true,
            failures: 0,
            divides: true,
            paced: (0, 0),
        }
    }

    /// Whether everything was handed over. What is still under way is for nothing then.
    pub(super) fn is_done(&self) -> bool {
        self.all.iter().all(|stretch| stretch.state == State::Done)
    }

    /// What to ask next; `None`: nothing before an answer has come.
    pub(super) fn next(&mut self) -> Option<Ask> {
        let ask = self.due().or_else(|| self.idle())?;
        self.under_way += 1;
        Some(ask)
    }

    fn due(&mut self) -> Option<Ask> {
        self.all.iter_mut().enumerate().find_map(|(index, stretch)| match &mut stretch.state {
            State::Due(token) => {
                let token = token.take();
                stretch.state = State::Asked;
                Some(Ask::Next { stretch: index, token })
            }
            State::Asked | State::Done => None,
        })
    }

    /// What to do with a request that no stretch needs.
    fn idle(&mut self) -> Option<Ask> {
        let most = (self.pages / 2).min(AT_ONCE);
        if !self.divides || self.under_way >= most {
            return None;
        }
        if let Some(point) = self.middle() {
            self.pending.insert(point.clone());
            return Some(Ask::Behind(point));
        }
        let has_asked_enough = self.questions >= QUESTIONS + self.pages / PAGES_FOR_ANOTHER;
        if self.is_asking || !self.may_ask || has_asked_enough {
            return None;
        }
        let question = self.question()?;
        self.is_asking = true;
        Some(question)
    }

    /// For directories that were not told, on the way to what is listed now.
    fn question(&self) -> Option<Ask> {
        let open = self.all.iter().filter(|stretch| stretch.state != State::Done);
        open.flat_map(|stretch| {
            stretch.way(&self.prefix).map(move |directory| (stretch, directory))
        })
        .find_map(|(stretch, directory)| {
            let after = match self.told.get(directory) {
                None => &stretch.after,
                Some(Some(last)) if stretch.end.as_ref().is_none_or(|end| end > last) => {
                    last.max(&stretch.after)
                }
                Some(_) => return None,
            };
            Some(Ask::Names { directory: directory.to_owned(), after: after.clone() })
        })
    }

    /// The middle of where there are the most points with nobody between them; `None` if so few are
    /// passed in the pages that are left alone.
    fn middle(&self) -> Option<String> {
        let open = self.all.iter().filter(|stretch| stretch.state != State::Done);
        let gaps = open.flat_map(|stretch| self.gaps(stretch));
        let widest = gaps.max_by_key(|gap| gap.len())?;
        let (pages, points) = self.paced;
        let few = (LEFT_ALONE * points).checked_div(pages).unwrap_or_default();
        (widest.len() > few).then(|| widest[widest.len() / 2].clone())
    }

    /// The points that are left in a stretch, apart where another stretch is about to begin.
    fn gaps(&self, stretch: &Stretch) -> Vec<&[String]> {
        let from = self.points.partition_point(|point| *point <= stretch.after);
        let is_in = |point: &String| stretch.end.as_ref().is_none_or(|end| point < end);
        let mut rest = &self.points[from..self.points.partition_point(is_in).max(from)];
        let mut gaps = Vec::new();
        for pending in &self.pending {
            if let Ok(at) = rest.binary_search(pending) {
                gaps.push(&rest[..at]);
                rest = &rest[at + 1..];
            }
        }
        gaps.push(rest);
        gaps
    }

    /// Takes in a page of a stretch; what of it is to be handed over.
    ///
    /// # Errors
    /// The page cannot be right, or has no place in what was listed.
    pub(super) fn take_next(
        &mut self,
        stretch: usize,
        asked: Option<&str>,
        page: Page,
    ) -> Result<Vec<Object>, Unusable> {
        self.under_way -= 1;
        // An endpoint that goes round in circles would be followed for ever.
        if asked.is_some() && page.next.as_deref() == asked {
            return Err(Unusable::SameToken);
        }
        let is_alone = self.all.len() == 1;
        if !is_in_order(&self.all[stretch].after, &page.objects) {
            if !is_alone {
                return Err(Unusable::Unordered);
            }
            self.divides = false;
        }
        Ok(self.take_in(stretch, page))
    }

    /// Takes in the first page behind a point: a stretch begins there, unless the one before has come
    /// past it or the page cannot be right. What is to be handed over.
    pub(super) fn take_behind(&mut self, point: &str, page: Page) -> Vec<Object> {
        self.under_way -= 1;
        self.pending.remove(point);
        let is_right = is_in_order(point, &page.objects) && reaches(point, &page);
        if !self.divides || !is_right {
            self.fail(point);
            return Vec::new();
        }
        let Some(before) = self.all.iter_mut().find(|stretch| stretch.holds(point)) else {
            return Vec::new();
        };
        let new = Stretch { after: point.to_owned(), ..before.clone() };
        before.end = Some(point.to_owned());
        self.all.push(new);
        self.take_in(self.all.len() - 1, page)
    }

    /// A request behind a point failed. It was one too many: the stretch before goes on.
    pub(super) fn failed_behind(&mut self, point: &str) {
        self.under_way -= 1;
        self.pending.remove(point);
        self.fail(point);
    }

    fn fail(&mut self, point: &str) {
        self.points.retain(|known| known != point);
        self.failures += 1;
        self.divides &= self.failures < FAILURES;
    }

    /// Takes in the names below a directory; `None` if they are not to be had.
    pub(super) fn take_names(&mut self, directory: String, names: Option<Names>) {
        self.under_way -= 1;
        self.is_asking = false;
        let Some(Names { names, is_cut }) = names else {
            // What is denied once will be again.
            self.may_ask = false;
            return;
        };
        let before = self.points.len();
        let points = names.iter().filter_map(|name| name.strip_suffix('/'));
        let points =
            points.filter(|point| point.starts_with(&directory) && !point.bytes().any(is_disputed));
        self.points.extend(points.map(str::to_owned));
        let last = self.points.last().cloned();
        self.points.sort_unstable();
        self.points.dedup();
        let is_news = self.points.len() > before;
        self.questions += usize::from(!is_news);
        self.told.insert(directory, last.filter(|_| is_cut && is_news));
    }

    fn take_in(&mut self, index: usize, page: Page) -> Vec<Object> {
        let Page { mut objects, next } = page;
        self.pages += 1;
        let stretch = &mut self.all[index];
        stretch.state = next.map_or(State::Done, |token| State::Due(Some(token)));
        if let Some(end) = &stretch.end {
            let inside = objects.iter().position(|object| key(object) > &**end);
            if let Some(inside) = inside {
                objects.truncate(inside);
                stretch.state = State::Done;
            }
        }
        let Some(last) = objects.last() else { return objects };
        let inside = common_directory(&stretch.after, key(last));
        if inside.starts_with(&*self.prefix) {
            inside.clone_into(&mut stretch.inside);
        } else {
            self.prefix.clone_into(&mut stretch.inside);
        }
        let passed = |key: &str| self.points.partition_point(|point| &**point <= key);
        let points = passed(key(last)).saturating_sub(passed(&stretch.after));
        key(last).clone_into(&mut stretch.after);
        if self.points.last().is_some_and(|last| *last > stretch.after) {
            self.paced = (self.paced.0 + 1, self.paced.1 + points);
        }
        objects
    }
}

impl Stretch {
    /// Whether a key lies before its end, and has not come yet.
    fn holds(&self, key: &str) -> bool {
        let is_before_the_end = self.end.as_ref().is_none_or(|end| key < &**end);
        self.state != State::Done && key > &*self.after && is_before_the_end
    }

    /// The directories from the prefix down to what is listed now, each with its `/`.
    fn way(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let ends = self.inside[prefix.len()..].match_indices('/').map(|(at, _)| at + 1);
        std::iter::once(0).chain(ends).map(move |end| &self.inside[..prefix.len() + end])
    }
}

fn key(object: &Object) -> &str {
    object.version.key.as_str()
}

/// The innermost directory that holds both, with its `/`; empty if none does.
fn common_directory<'a>(a: &'a str, b: &str) -> &'a str {
    let common = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let end = a.as_bytes()[..common].iter().rposition(|byte| *byte == b'/');
    &a[..end.map_or(0, |end| end + 1)]
}

/// Whether keys lie behind `after`, and each behind the one before.
fn is_in_order(after: &str, objects: &[Object]) -> bool {
    let keys = || objects.iter().map(key);
    std::iter::once(after).chain(keys()).zip(keys()).all(|(a, b)| may_follow(a, b))
}

/// Whether an endpoint may list `b` behind `a`.
fn may_follow(a: &str, b: &str) -> bool {
    match a.bytes().zip(b.bytes()).find(|(a, b)| a != b) {
        Some((a, b)) => a < b || (is_disputed(a) && is_disputed(b)),
        None => a.len() < b.len(),
    }
}

/// Whether the first page behind a point shows that nothing before it was left out: it comes to the
/// directory that the point stands for, or goes on before.
fn reaches(point: &str, page: &Page) -> bool {
    let is_inside = |object: &Object| {
        key(object).strip_prefix(point).is_some_and(|below| below.starts_with('/'))
    };
    let goes_on = page.next.is_some()
        && page.objects.last().is_some_and(|last| *key(last) < *format!("{point}/"));
    goes_on || page.objects.iter().any(is_inside)
}

/// Whether a letter begins so of which UTF-8 and UTF-16 do not agree where it stands: from U+E000 on.
fn is_disputed(byte: u8) -> bool {
    byte >= 0xee
}

#[cfg(test)]
mod tests;
