package specs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// maxProblems is the most problems reported of one file.
const maxProblems = 200

// rawDocument is one document before it is decoded. The problems found[from:to]
// of its source are about it, and errors is their number, those not kept too.
type rawDocument struct {
	root             *node
	from, to, errors int
}

// source is one text being read: where it is from and what was found in it.
type source struct {
	file string
	// offset is added to every line: the lines before the text.
	offset int
	lines  *lines
	found  Diagnostics
	// errors counts all errors, also those beyond maxProblems.
	errors int
}

func (s *source) pos(line, col int) Pos { return Pos{s.file, line + s.offset, col} }

func (s *source) add(d Diagnostic) {
	if d.Severity == Error {
		s.errors++
	}
	switch n := len(s.found); {
	case n < maxProblems:
		s.found = append(s.found, d)
	case n == maxProblems:
		s.found = append(s.found, Diagnostic{
			Pos: d.Pos, Severity: Error, Code: CodeTooManyProblems, Ref: d.Ref,
			Message: fmt.Sprintf("more than %d problems in this file; the rest is not shown", maxProblems),
		})
	}
}

// hint is that of didYouMean, which is not worth its time when nothing more is shown.
func (s *source) hint(text string, names []string) string {
	if len(s.found) > maxProblems {
		return ""
	}
	return didYouMean(text, names)
}

// report adds an error about the text itself, at a place in it.
func (s *source) report(line, col int, code Code, hint, format string, args ...any) {
	s.add(Diagnostic{
		Pos: s.pos(line, col), Severity: Error, Code: code,
		Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// limits are the budgets of one file with the defaults filled in.
type limits struct{ size, nodes, depth int }

func (l Loader) limits() limits {
	pick := func(v, def int) int {
		if v > 0 {
			return v
		}
		return def
	}
	return limits{pick(l.MaxFileSize, 4<<20), pick(l.MaxNodes, 1_000_000), pick(l.MaxDepth, 100)}
}

// readDocuments parses the text into documents. When ok is false the text is
// no YAML or exceeds a budget, and the documents before the fault are returned.
func (s *source) readDocuments(data []byte, lim limits) (docs []rawDocument, ok bool) {
	if len(data) > lim.size {
		s.report(1, 1, CodeFileTooLarge, "split it into several files", "file is larger than %s", Size(lim.size))
		return nil, false
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	s.lines = newLines(string(data))
	if !s.checkEncoding(data) {
		return nil, false
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	budget := lim.nodes
	for {
		doc, err := nextDocument(dec)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return docs, true
			}
			s.syntaxError(err, data)
			return docs, false
		}
		if doc == nil || len(doc.Content) == 0 {
			continue
		}
		c := converter{source: s, limits: lim, budget: budget, done: map[*yaml.Node]*node{}}
		from, before := len(s.found), s.errors
		n := c.convert(doc.Content[0], 1)
		if n == nil {
			return docs, false
		}
		if budget -= n.size; n.null() {
			continue
		}
		docs = append(docs, rawDocument{n, from, len(s.found), s.errors - before})
	}
}

// nextDocument decodes one document. The parser is known to panic on some
// malformed input, which is an error like any other here.
func nextDocument(dec *yaml.Decoder) (n *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			n, err = nil, fmt.Errorf("cannot be parsed: %v", p)
		}
	}()
	n = new(yaml.Node)
	return n, dec.Decode(n)
}

func (s *source) checkEncoding(data []byte) bool {
	const hint = "save the file as UTF-8"
	if bytes.HasPrefix(data, []byte{0xFE, 0xFF}) || bytes.HasPrefix(data, []byte{0xFF, 0xFE}) {
		s.report(1, 1, CodeEncoding, hint, "file is UTF-16")
		return false
	}
	for i := 0; i < len(data); {
		b := data[i]
		if b >= ' ' && b < 0x7F || b == '\n' || b == '\r' || b == '\t' {
			i++
			continue
		}
		r, w := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && w <= 1 {
			line, col := s.lines.at(i)
			s.report(line, col, CodeEncoding, hint, "byte 0x%02X is not UTF-8", b)
			return false
		}
		if b < 0x80 || r < 0xA0 && r != 0x85 || r == 0xFFFE || r == 0xFFFF || r == 0xFEFF {
			line, col := s.lines.at(i)
			s.report(line, col, CodeEncoding, "remove it, or write it as an escape in double quotes",
				"character U+%04X is not allowed", r)
			return false
		}
		i += w
	}
	return true
}

var (
	yamlLine      = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	unknownAnchor = regexp.MustCompile(`unknown anchor '(.*)' referenced`)
	// Values that YAML does not read as text, and what it then complains of.
	unquotedSign  = regexp.MustCompile("(?:^|[:\\-,]\\s|[\\[{])\\s*([!&*%@`].*)$")
	signProblem   = regexp.MustCompile(`alphabetic|anchor|any token|tag|'!'|whitespace`)
	unquotedBrace = regexp.MustCompile(`(?:^|[:\-,]\s|[\[{])\s*([^"'\s#\[{,]*\$\{.*)$`)
	braceProblem  = regexp.MustCompile(`',' or|mapping values`)
)

// syntaxError reports what the parser said. The parser tells no column and
// often a wrong line, so the place is measured: the text is parsed again from
// a reader that counts how much was asked for.
func (s *source) syntaxError(err error, data []byte) {
	msg := yamlLine.ReplaceAllString(err.Error(), "")
	offset := faultOffset(data) - 1
	if m := unknownAnchor.FindStringSubmatch(msg); m != nil {
		if i := strings.LastIndex(s.lines.text[:max(offset, 0)], "*"+m[1]); i >= 0 {
			offset = i
		}
	}
	line, col := s.lines.at(offset)
	text := s.lines.line(line)
	if len(text) > longLine {
		text = ""
	}
	quotes := func(m []int) (col int, hint string) {
		return utf8.RuneCountInString(text[:m[2]]) + 1, "put the value in quotes: " + quoteHint(text[m[2]:m[3]])
	}
	hint := ""
	sign, brace := unquotedSign.FindStringSubmatchIndex(text), unquotedBrace.FindStringSubmatchIndex(text)
	switch {
	case sign != nil && signProblem.MatchString(msg):
		col, hint = quotes(sign)
	case brace != nil && braceProblem.MatchString(msg):
		col, hint = quotes(brace)
	case leadingTab(text) >= 0:
		col, hint = leadingTab(text)+1, "indent with spaces, not tabs"
	case strings.Contains(msg, "end of stream"):
		hint = "a quote is not closed"
	case strings.Contains(msg, "expected key") || strings.Contains(msg, "'-' indicator"):
		col, hint = len(text)-len(strings.TrimLeft(text, " "))+1, "check the indentation"
	}
	s.report(line, col, CodeSyntax, hint, "not valid YAML: %s", msg)
}

// quoteHint shows a value in quotes, without what closes the collection it
// stands in.
func quoteHint(v string) string {
	v = strings.TrimSpace(v)
	if i := strings.LastIndexByte(v, '}'); strings.Contains(v, "${") && i >= 0 {
		for i > 0 && strings.Count(v[:i+1], "}") > strings.Count(v[:i+1], "{") {
			i = strings.LastIndexByte(v[:i], '}')
		}
		v = v[:i+1]
	}
	const most = 60
	if len(v) > most {
		return `"…"`
	}
	return quote(v)
}

// quote writes text as a quoted YAML scalar.
func quote(v string) string {
	if !strings.Contains(v, `"`) && !strings.Contains(v, `\`) {
		return `"` + v + `"`
	}
	return "'" + strings.ReplaceAll(v, "'", "''") + "'"
}

func leadingTab(line string) int {
	for i, c := range line {
		if c == '\t' {
			return i
		}
		if c != ' ' && c != '-' {
			break
		}
	}
	return -1
}

// stepReader hands out one byte at a time and counts them.
type stepReader struct {
	data []byte
	n    int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if r.n >= len(r.data) {
		return 0, io.EOF
	}
	p[0] = r.data[r.n]
	r.n++
	return 1, nil
}

// faultOffset returns how many bytes the parser has read when it fails.
func faultOffset(data []byte) int {
	r := &stepReader{data: data}
	dec := yaml.NewDecoder(r)
	for {
		if _, err := nextDocument(dec); err != nil {
			return r.n
		}
	}
}

// converter turns parser nodes into nodes, within the budgets.
type converter struct {
	*source
	limits limits
	budget int
	// done holds converted anchors; nil while one is being converted.
	done map[*yaml.Node]*node
	// path leads to the value being converted.
	path []step
}

// step is one step of a path: a key, or an index when the key is "".
type step struct {
	key   string
	index int
}

// report hides that of source: the path is known here.
func (c *converter) report(line, col int, code Code, hint, format string, args ...any) {
	c.add(Diagnostic{
		Pos: c.pos(line, col), Severity: Error, Code: code, Path: c.pathText(),
		Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

func (c *converter) pathText() string {
	path := ""
	for _, s := range c.path {
		if s.key == "" {
			path += "[" + strconv.Itoa(s.index) + "]"
		} else {
			path = join(path, s.key)
		}
	}
	return path
}

// child converts the value that a step leads to.
func (c *converter) child(y *yaml.Node, s step, depth int) *node {
	c.path = append(c.path, s)
	n := c.convert(y, depth)
	c.path = c.path[:len(c.path)-1]
	return n
}

// convert returns nil after reporting when a budget is exceeded.
func (c *converter) convert(y *yaml.Node, depth int) *node {
	if y.Kind == yaml.AliasNode {
		return c.alias(y, depth)
	}
	if depth > c.limits.depth {
		c.report(y.Line, y.Column, CodeTooDeep, "", "nested deeper than %d levels", c.limits.depth)
		return nil
	}
	if c.budget--; c.budget < 0 {
		c.tooMany(y)
		return nil
	}
	if y.Anchor != "" {
		c.done[y] = nil
	}
	n := &node{
		tag: y.Tag, value: y.Value, line: max(y.Line, 1), col: max(y.Column, 1),
		comment: y.LineComment != "", size: 1, height: 1,
	}
	switch y.Kind {
	case yaml.SequenceNode:
		n.kind = listNode
		n.items = make([]*node, 0, len(y.Content))
		for i, item := range y.Content {
			v := c.child(item, step{index: i}, depth+1)
			if v == nil {
				return nil
			}
			n.items = append(n.items, v)
			n.size, n.height = n.size+v.size, max(n.height, v.height+1)
		}
		c.checkTag(y, "!!seq")
	case yaml.MappingNode:
		n.kind = mapNode
		if !c.mapping(n, y, depth) {
			return nil
		}
		c.checkTag(y, "!!map")
	default:
		switch {
		case y.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
			n.style = quotedStyle
		case y.Style&yaml.LiteralStyle != 0:
			n.style = literalStyle
		case y.Style&yaml.FoldedStyle != 0:
			n.style = foldedStyle
		}
		if text, ok := c.lostTag(y); ok {
			n.tag, n.value = "!!str", text
		}
	}
	if y.Anchor != "" {
		c.done[y] = n
	}
	return n
}

func (c *converter) tooMany(y *yaml.Node) {
	c.report(y.Line, y.Column, CodeTooManyNodes, "aliases count as often as they are used",
		"file has more than %d values", c.limits.nodes)
}

func (c *converter) alias(y *yaml.Node, depth int) *node {
	n := c.done[y.Alias]
	if n == nil {
		c.report(y.Line, y.Column, CodeAliasCycle, "", "alias *%s refers to a value it is part of", y.Value)
		return nil
	}
	if c.budget -= n.size; c.budget < 0 {
		c.tooMany(y)
		return nil
	}
	if depth+n.height-1 > c.limits.depth {
		c.report(y.Line, y.Column, CodeTooDeep, "", "nested deeper than %d levels", c.limits.depth)
		return nil
	}
	return n
}

// mapping fills in the pairs: own keys first, then merged ones not yet there.
func (c *converter) mapping(n *node, y *yaml.Node, depth int) bool {
	n.pairs = make([]pair, 0, len(y.Content)/2)
	// Looking through the pairs is faster than a map while they are few.
	var index map[string]*node
	const few = 16
	first := func(key string) *node {
		if index != nil {
			return index[key]
		}
		for _, p := range n.pairs {
			if p.key.value == key {
				return p.key
			}
		}
		return nil
	}
	put := func(key, val *node) {
		n.pairs = append(n.pairs, pair{key, val})
		n.size += key.size + val.size
		n.height = max(n.height, val.height+1)
		if index != nil {
			index[key.value] = key
		} else if len(n.pairs) > few {
			index = make(map[string]*node, 2*len(n.pairs))
			for _, p := range n.pairs {
				index[p.key.value] = p.key
			}
		}
	}
	var merges []*node
	for i := 0; i+1 < len(y.Content); i += 2 {
		yk := y.Content[i]
		key := c.convert(yk, depth+1)
		if key == nil {
			return false
		}
		val := c.child(y.Content[i+1], step{key: key.value}, depth+1)
		if val == nil {
			return false
		}
		switch before := first(key.value); {
		case key.kind != scalarNode:
			c.report(yk.Line, yk.Column, CodeInvalidKey, "put it in quotes if it is text", "a key must be text, not %s", key.describe())
		case key.tag == "!!merge":
			merges = append(merges, val)
		case key.value == "":
			c.report(yk.Line, yk.Column, CodeInvalidKey, "", "a key must not be empty")
		case before != nil:
			c.add(Diagnostic{
				Pos: c.pos(yk.Line, yk.Column), Severity: Error, Code: CodeDuplicateKey, Path: join(c.pathText(), key.value),
				Message: fmt.Sprintf("key %q is already given at line %d", key.value, before.line+c.offset),
				Hint:    "remove one of them", Related: []Pos{c.pos(before.line, before.col)},
			})
		default:
			put(key, val)
		}
	}
	for _, m := range merges {
		from := []*node{m}
		if m.kind == listNode {
			from = m.items
		}
		for _, src := range from {
			if src.kind != mapNode {
				c.report(src.line, src.col, CodeInvalidMerge, "<<: *name, or a list of these",
					"a merge key needs a mapping, not %s", src.describe())
				continue
			}
			for _, p := range src.pairs {
				if c.budget--; c.budget < 0 {
					c.tooMany(y)
					return false
				}
				if first(p.key.value) == nil {
					put(p.key, p.val)
				}
			}
		}
	}
	return true
}

func (c *converter) checkTag(y *yaml.Node, want string) {
	if y.Tag != want && y.Tag != "" {
		c.report(y.Line, y.Column, CodeCustomTag, "remove the tag", "tag %s is not supported", y.Tag)
	}
}

// lostTag finds values that begin with "!": YAML takes the word for a tag and
// loses it, which would turn `when: !order` into an empty expression. It
// returns what was probably meant.
func (c *converter) lostTag(y *yaml.Node) (text string, ok bool) {
	tag := y.Tag
	switch tag {
	case "!!str", "!!int", "!!float", "!!bool", "!!null", "!!timestamp", "!!merge":
		if y.Style&yaml.TaggedStyle != 0 || y.Anchor != "" || !strings.HasPrefix(c.lines.from(y.Line, y.Column), "!") {
			return "", false
		}
		tag = "!"
	}
	text = strings.TrimSpace(tag + " " + y.Value)
	c.report(y.Line, y.Column, CodeCustomTag, "put the value in quotes: "+quoteHint(text),
		"YAML takes %s for a tag and drops it", tag)
	return text, true
}
