package specs

import (
	"strings"
	"unicode/utf8"
)

type nodeKind uint8

const (
	scalarNode nodeKind = iota
	listNode
	mapNode
)

// node is a YAML value with aliases and merge keys resolved. An aliased value
// is one node used in several places, so a tree of them is only walked after
// its expanded size passed the budget.
type node struct {
	kind      nodeKind
	tag       string // "!!str", "!!int", …
	value     string // of a scalar
	style     scalarStyle
	line, col int
	comment   bool // a comment follows on the same line
	items     []*node
	pairs     []pair
	// size and height are those of the expanded tree.
	size, height int
}

type pair struct{ key, val *node }

type scalarStyle uint8

const (
	plainStyle scalarStyle = iota
	quotedStyle
	literalStyle
	foldedStyle
)

// get finds a value by key, or nil.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for _, p := range n.pairs {
		if p.key.value == key {
			return p.val
		}
	}
	return nil
}

func (n *node) null() bool { return n.kind == scalarNode && n.tag == "!!null" }

// describe names what a node is, for messages.
func (n *node) describe() string {
	switch {
	case n.kind == listNode:
		return "a list"
	case n.kind == mapNode:
		return "a mapping"
	case n.null():
		return "nothing"
	}
	const most = 40
	v := n.value
	if utf8.RuneCountInString(v) > most {
		v = string([]rune(v)[:most]) + "…"
	}
	return "`" + strings.ReplaceAll(v, "\n", "⏎") + "`"
}

// find walks a path such as "auth.hmac" or "items[2]" and returns the deepest
// node that exists on it.
func (n *node) find(path string) *node {
	at := n
	for path != "" {
		var next *node
		switch {
		case strings.HasPrefix(path, `["`):
			end := strings.Index(path, `"]`)
			if end < 0 {
				return at
			}
			next, path = at.get(path[2:end]), path[end+2:]
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return at
			}
			i := 0
			for _, c := range path[1:end] {
				i = i*10 + int(c-'0')
			}
			path = path[end+1:]
			if i >= 0 && i < len(at.items) {
				next = at.items[i]
			}
		default:
			path = strings.TrimPrefix(path, ".")
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			next, path = at.get(path[:end]), path[end:]
		}
		if next == nil {
			return at
		}
		at = next
	}
	return at
}

// join appends a key to a path.
func join(path, key string) string {
	if key == "" || strings.ContainsAny(key, `.[]"' `) {
		return path + `["` + key + `"]`
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// longLine is the length in bytes beyond which a line's text is not looked at
// for hints and exact places: to count its characters for every value on it
// would be quadratic.
const longLine = 4096

// lines gives access to the text of a file by line, with the line breaks YAML
// knows.
type lines struct {
	text  string
	start []int // byte offset of each line
}

func newLines(text string) *lines {
	l := &lines{text: text, start: []int{0}}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
		case c == '\r':
			if i+1 < len(text) && text[i+1] == '\n' {
				i++
			}
		case c == 0xC2 && strings.HasPrefix(text[i:], "\u0085"):
			i++
		case c == 0xE2 && (strings.HasPrefix(text[i:], "\u2028") || strings.HasPrefix(text[i:], "\u2029")):
			i += 2
		default:
			continue
		}
		l.start = append(l.start, i+1)
	}
	return l
}

// line returns a line, from 1, without its break; "" beyond the end.
func (l *lines) line(n int) string {
	if n < 1 || n > len(l.start) {
		return ""
	}
	end := len(l.text)
	if n < len(l.start) {
		end = l.start[n]
	}
	return strings.TrimRight(l.text[l.start[n-1]:end], "\r\n\u0085\u2028\u2029")
}

// from returns the rest of a line from a column, both from 1.
func (l *lines) from(n, col int) string {
	s := l.line(n)
	if len(s) > longLine {
		return ""
	}
	for ; col > 1 && s != ""; col-- {
		_, w := utf8.DecodeRuneInString(s)
		s = s[w:]
	}
	return s
}

// at turns a byte offset into line and column; a line break belongs to the
// column after the line's last character.
func (l *lines) at(offset int) (line, col int) {
	offset = min(max(offset, 0), len(l.text))
	for offset > 0 && offset < len(l.text) && !utf8.RuneStart(l.text[offset]) {
		offset--
	}
	lo, hi := 0, len(l.start)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; l.start[mid] <= offset {
			lo = mid
		} else {
			hi = mid
		}
	}
	end := min(offset, l.start[lo]+len(l.line(lo+1)))
	return lo + 1, utf8.RuneCountInString(l.text[l.start[lo]:end]) + 1
}

// document returns the lines of the document that has its first value on line
// first.
func (l *lines) document(first int) string {
	end := len(l.text)
	for _, at := range l.start[first:] {
		rest := l.text[at:]
		if (strings.HasPrefix(rest, "---") || strings.HasPrefix(rest, "...")) &&
			(len(rest) == 3 || strings.IndexByte(" \t\r\n", rest[3]) >= 0) {
			end = at
			break
		}
	}
	return l.text[l.start[first-1]:end]
}
