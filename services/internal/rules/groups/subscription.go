package groups

import (
	"regexp"
	"slices"
	"strings"

	errorsv1 "github.com/runnel-mesh/runnel/gen/runnel/errors/v1"
)

const (
	// maxPatterns bounds the cache of compiled patterns.
	maxPatterns = 1000
	// maxSubscribedTopics and maxPatternBytes bound a subscription.
	maxSubscribedTopics = 1000
	maxPatternBytes     = 1024
)

// patterns are compiled regular expressions, and what of the current topics they match.
type patterns map[string]*pattern

type pattern struct {
	// expression is nil for one that does not compile, which matches nothing.
	expression *regexp.Regexp
	// matched is in ascending order of names, and known once it is not nil.
	matched []Topic
}

func newPatterns() patterns { return patterns{} }

// forget says that the topics are others.
func (p patterns) forget() {
	for _, x := range p {
		x.matched = nil
	}
}

func (p patterns) get(text string) *pattern {
	x := p[text]
	if x == nil {
		if len(p) >= maxPatterns {
			clear(p)
		}
		x = &pattern{}
		// The text must compile by itself: "a)|(b" does so only between other brackets.
		if _, err := regexp.Compile(text); err == nil {
			x.expression, _ = regexp.Compile(`\A(?:` + text + `)\z`)
		}
		p[text] = x
	}
	return x
}

// matches reports whether the whole name matches; internal topics never do.
func (x *pattern) matches(name string) bool {
	return x.expression != nil && !strings.HasPrefix(name, "__") && x.expression.MatchString(name)
}

func (x *pattern) topics(topics Topics) []Topic {
	if x.matched == nil {
		x.matched = []Topic{}
		if x.expression != nil {
			for t := range topics.All {
				if x.matches(t.Name) {
					x.matched = append(x.matched, t)
				}
			}
		}
	}
	return x.matched
}

// checkSubscription returns the subscription with its topics in order, each once, or why
// it is none.
func (s *Shard) checkSubscription(group GroupID, sub Subscription) (Subscription, *Refusal) {
	invalid := func(format string, args ...any) (Subscription, *Refusal) {
		return sub, refusal(errorsv1.Reason_REASON_INVALID_SUBSCRIPTION, format, args...)
	}
	switch {
	case len(sub.Topics) == 0 && sub.Pattern == "":
		return invalid("the subscription in group %q is empty: name topics or a pattern of their names", group)
	case len(sub.Topics) > maxSubscribedTopics:
		return invalid("the subscription in group %q names %d topics, more than %d: use a pattern",
			group, len(sub.Topics), maxSubscribedTopics)
	case len(sub.Pattern) > maxPatternBytes:
		return invalid("the topic pattern of the subscription in group %q has %d bytes, more than %d: shorten it",
			group, len(sub.Pattern), maxPatternBytes)
	case sub.Pattern != "" && s.patterns.get(sub.Pattern).expression == nil:
		_, err := regexp.Compile(sub.Pattern)
		return invalid("the topic pattern %q of the subscription in group %q is no regular expression in RE2 syntax: %v",
			sub.Pattern, group, err)
	}
	if !slices.IsSorted(sub.Topics) || len(slices.Compact(slices.Clone(sub.Topics))) < len(sub.Topics) {
		sub.Topics = slices.Clone(sub.Topics)
		slices.Sort(sub.Topics)
		sub.Topics = slices.Compact(sub.Topics)
	}
	return sub, nil
}

func (sub Subscription) equal(other Subscription) bool {
	return sub.Pattern == other.Pattern && slices.Equal(sub.Topics, other.Topics)
}

// resolve returns the topics of a subscription in ascending order of their names.
func (s *Shard) resolve(sub Subscription) []Topic {
	if sub.Pattern != "" && len(sub.Topics) == 0 {
		return s.patterns.get(sub.Pattern).topics(s.topics)
	}
	found := make([]Topic, 0, len(sub.Topics))
	for _, name := range sub.Topics {
		if t, ok := s.topics.ByName(name); ok {
			found = append(found, t)
		}
	}
	if sub.Pattern != "" {
		found = append(found, s.patterns.get(sub.Pattern).topics(s.topics)...)
		slices.SortFunc(found, compareNames)
		found = slices.Compact(found)
	}
	return found
}

func compareNames(a, b Topic) int { return strings.Compare(a.Name, b.Name) }

// missing returns the names of a subscription that no topic has.
func (s *Shard) missing(sub Subscription) []string {
	var missing []string
	for _, name := range sub.Topics {
		if _, ok := s.topics.ByName(name); !ok {
			missing = append(missing, name)
		}
	}
	return missing
}

// wants reports whether the subscription is to a topic of that name.
func (s *Shard) wants(sub Subscription, name string) bool {
	if _, named := slices.BinarySearch(sub.Topics, name); named {
		return true
	}
	return sub.Pattern != "" && s.patterns.get(sub.Pattern).matches(name)
}

// compare marks the groups to which it matters that the topics are others than before, if
// anything was known of them.
func (s *Shard) compare(old Topics) {
	var changed []string
	if old != nil {
		changed = changedTopics(old, s.topics)
	}
	deleted := false
	for id := range s.offsetsOf {
		deleted = deleted || s.topics.Deleted(id)
	}
	if len(changed) == 0 && !deleted {
		return
	}
	for _, g := range s.sorted() {
		if deleted {
			s.seekDeleted(g)
		}
		if s.subscribed(g, changed) {
			g.stale = true
		}
		if g.stale || g.purge {
			s.list(g)
		}
	}
}

// subscribed reports whether a member is subscribed to one of the topics.
func (s *Shard) subscribed(g *group, names []string) bool {
	for i, m := range g.members {
		if i > 0 && m.Subscription.equal(g.members[i-1].Subscription) {
			continue
		}
		if slices.ContainsFunc(names, func(name string) bool { return s.wants(m.Subscription, name) }) {
			return true
		}
	}
	return false
}

// changedTopics returns the names of topics that are not the same in both, each once.
func changedTopics(before, after Topics) []string {
	old, now := slices.Collect(before.All), slices.Collect(after.All)
	var names []string
	for len(old) > 0 || len(now) > 0 {
		switch {
		case len(now) == 0 || len(old) > 0 && old[0].Name < now[0].Name:
			names, old = append(names, old[0].Name), old[1:]
		case len(old) == 0 || now[0].Name < old[0].Name:
			names, now = append(names, now[0].Name), now[1:]
		default:
			if old[0] != now[0] {
				names = append(names, now[0].Name)
			}
			old, now = old[1:], now[1:]
		}
	}
	return names
}
