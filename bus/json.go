package bus

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// maxJSONDepth is how deep JSON may be nested, as in encoding/json.
const maxJSONDepth = 10_000

// ParseJSON decodes one JSON text as expressions see it: numbers without
// fraction and exponent that fit are int64, so that neighbouring 19-digit ids
// stay different; all others are float64. Otherwise it decodes as
// encoding/json does, several times as fast. Strings of the result share one
// copy of data.
func ParseJSON(data []byte) (any, error) { return parseJSON(data, nil) }

// ParseJSONFields is ParseJSON for a reader that looks at some fields of an
// object only: others of the outermost object are checked, but are not in the
// result. What is no object is there in full.
func ParseJSONFields(data []byte, fields []string) (any, error) {
	if fields == nil {
		fields = []string{}
	}
	return parseJSON(data, fields)
}

func parseJSON(data []byte, fields []string) (any, error) {
	p := jsonParser{s: data, fields: fields}
	if fields == nil {
		p.text = string(data)
		p.keys = make([]string, 0, min(len(data)/20+2, 16))
		p.vals = make([]any, 0, min(len(data)/10+2, 32))
	}
	p.space()
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	if p.space(); p.i < len(p.s) {
		return nil, p.errorf("more than one JSON value")
	}
	return v, nil
}

// jsonParser reads s from i on. The elements of the arrays and objects it is
// inside of wait on the two stacks, so that each is made in its final size.
type jsonParser struct {
	s    []byte
	i    int
	keys []string
	vals []any
	// text is a copy of s that the strings of the result share, "" when each
	// is a copy of its own because most of s is not wanted.
	text string
	// fields are those wanted of the outermost object, nil for all.
	fields []string
}

var errJSONEnd = errors.New("unexpected end of JSON")

func (p *jsonParser) errorf(format string, args ...any) error {
	return fmt.Errorf(format+" at byte %d", append(args, p.i)...)
}

// unexpected is the error about the byte at i, or the end.
func (p *jsonParser) unexpected(want string) error {
	if p.i >= len(p.s) {
		return errJSONEnd
	}
	return p.errorf("invalid character %q, want %s,", p.s[p.i], want)
}

func (p *jsonParser) space() { p.i = skipSpace(p.s, p.i) }

// cut returns what is between two places of s.
func (p *jsonParser) cut(from, to int) string {
	if p.text != "" {
		return p.text[from:to]
	}
	return string(p.s[from:to])
}

func (p *jsonParser) value(depth int) (any, error) {
	if p.i >= len(p.s) {
		return nil, errJSONEnd
	}
	switch c := p.s[p.i]; c {
	case '"':
		s, err := p.string()
		if err != nil {
			return nil, err
		}
		return s, nil
	case '{':
		return p.object(depth + 1)
	case '[':
		return p.array(depth + 1)
	case 't':
		return true, p.word("true")
	case 'f':
		return false, p.word("false")
	case 'n':
		return nil, p.word("null")
	default:
		if c == '-' || '0' <= c && c <= '9' {
			return p.number()
		}
		return nil, p.unexpected("a value")
	}
}

func (p *jsonParser) word(w string) error {
	for j := range len(w) {
		if p.i >= len(p.s) || p.s[p.i] != w[j] {
			return p.unexpected(w)
		}
		p.i++
	}
	return nil
}

func (p *jsonParser) object(depth int) (any, error) {
	if depth > maxJSONDepth {
		return nil, p.errorf("JSON is nested too deep")
	}
	p.i++
	firstKey, firstVal := len(p.keys), len(p.vals)
	p.space()
	if p.i < len(p.s) && p.s[p.i] == '}' {
		p.i++
		return map[string]any{}, nil
	}
	for {
		p.space()
		if p.i >= len(p.s) || p.s[p.i] != '"' {
			return nil, p.unexpected("a name")
		}
		var k string
		var err error
		wanted := true
		if depth == 1 && p.fields != nil {
			k, wanted, err = p.field()
		} else {
			k, err = p.string()
		}
		if err != nil {
			return nil, err
		}
		p.space()
		if p.i >= len(p.s) || p.s[p.i] != ':' {
			return nil, p.unexpected("':'")
		}
		p.i++
		p.space()
		if wanted {
			v, err := p.value(depth)
			if err != nil {
				return nil, err
			}
			p.keys, p.vals = append(p.keys, k), append(p.vals, v)
		} else if err := p.skip(depth); err != nil {
			return nil, err
		}
		p.space()
		switch {
		case p.i < len(p.s) && p.s[p.i] == ',':
			p.i++
		case p.i < len(p.s) && p.s[p.i] == '}':
			p.i++
			keys, vals := p.keys[firstKey:], p.vals[firstVal:]
			m := make(map[string]any, len(keys))
			for j, k := range keys {
				m[k] = vals[j]
			}
			p.keys, p.vals = p.keys[:firstKey], p.vals[:firstVal]
			return m, nil
		default:
			return nil, p.unexpected("',' or '}'")
		}
	}
}

func (p *jsonParser) array(depth int) (any, error) {
	if depth > maxJSONDepth {
		return nil, p.errorf("JSON is nested too deep")
	}
	p.i++
	first := len(p.vals)
	p.space()
	if p.i < len(p.s) && p.s[p.i] == ']' {
		p.i++
		return []any{}, nil
	}
	for {
		p.space()
		v, err := p.value(depth)
		if err != nil {
			return nil, err
		}
		p.vals = append(p.vals, v)
		p.space()
		switch {
		case p.i < len(p.s) && p.s[p.i] == ',':
			p.i++
		case p.i < len(p.s) && p.s[p.i] == ']':
			p.i++
			list := make([]any, len(p.vals)-first)
			copy(list, p.vals[first:])
			p.vals = p.vals[:first]
			return list, nil
		default:
			return nil, p.unexpected("',' or ']'")
		}
	}
}

func (p *jsonParser) number() (any, error) {
	start := p.i
	if p.s[p.i] == '-' {
		p.i++
	}
	switch {
	case p.i < len(p.s) && p.s[p.i] == '0':
		p.i++
	case !p.digits():
		return nil, p.unexpected("a digit")
	}
	whole := true
	if p.i < len(p.s) && p.s[p.i] == '.' {
		p.i++
		if whole = false; !p.digits() {
			return nil, p.unexpected("a digit")
		}
	}
	if p.i < len(p.s) && (p.s[p.i] == 'e' || p.s[p.i] == 'E') {
		p.i++
		if p.i < len(p.s) && (p.s[p.i] == '+' || p.s[p.i] == '-') {
			p.i++
		}
		if whole = false; !p.digits() {
			return nil, p.unexpected("a digit")
		}
	}
	text := p.s[start:p.i]
	if whole {
		if n, err := strconv.ParseInt(string(text), 10, 64); err == nil {
			return n, nil
		}
	}
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil {
		return nil, p.errorf("number out of range")
	}
	return f, nil
}

// digits reads at least one digit.
func (p *jsonParser) digits() bool {
	end := skipDigits(p.s, p.i)
	if end < 0 {
		return false
	}
	p.i = end
	return true
}

// string reads a string that begins at i.
func (p *jsonParser) string() (string, error) {
	start := p.i + 1
	if p.i = skipPlain(p.s, start); p.i >= len(p.s) {
		return "", errJSONEnd
	}
	switch c := p.s[p.i]; c {
	case '"':
		p.i++
		s := p.cut(start, p.i-1)
		if !utf8.ValidString(s) {
			return string([]rune(s)), nil // each invalid byte becomes U+FFFD
		}
		return s, nil
	case '\\':
		return p.escaped(start)
	default:
		return "", p.errorf("invalid character %q in a string", c)
	}
}

// field reads a string that begins at i and reports whether it is one of the
// fields wanted.
func (p *jsonParser) field() (name string, wanted bool, err error) {
	start := p.i + 1
	if end := skipPlain(p.s, start); end < len(p.s) && p.s[end] == '"' {
		for _, f := range p.fields {
			if string(p.s[start:end]) == f {
				p.i = end + 1
				return f, true, nil
			}
		}
		if utf8.Valid(p.s[start:end]) { // or it could still become one of them
			p.i = end + 1
			return "", false, nil
		}
	}
	name, err = p.string()
	return name, slices.Contains(p.fields, name), err
}

// skip goes over a value that is not wanted.
func (p *jsonParser) skip(depth int) error {
	c := jsonChecker{b: p.s, ranged: true}
	end := c.value(p.i, depth)
	if end < 0 {
		_, err := p.value(depth) // says why
		return err
	}
	p.i = end
	return nil
}

// escaped reads the rest of a string from its first escape on.
func (p *jsonParser) escaped(start int) (string, error) {
	b := append(make([]byte, 0, p.i-start+32), p.s[start:p.i]...)
	for p.i < len(p.s) {
		plain := p.i
		if p.i = skipPlain(p.s, plain); p.i >= len(p.s) {
			break
		}
		b = append(b, p.s[plain:p.i]...)
		c := p.s[p.i]
		p.i++
		switch {
		case c == '"':
			if !utf8.Valid(b) {
				return string([]rune(string(b))), nil
			}
			return string(b), nil
		case c < ' ':
			p.i--
			return "", p.errorf("invalid character %q in a string", c)
		}
		if p.i >= len(p.s) {
			break
		}
		c = p.s[p.i]
		p.i++
		switch c {
		case '"', '\\', '/':
			b = append(b, c)
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r, err := p.hex()
			if err != nil {
				return "", err
			}
			if utf16.IsSurrogate(r) {
				// Half a pair alone is U+FFFD; what follows stands for itself.
				was := p.i
				pair := rune(utf8.RuneError)
				if p.i+1 < len(p.s) && p.s[p.i] == '\\' && p.s[p.i+1] == 'u' {
					p.i += 2
					low, err := p.hex()
					if err != nil {
						return "", err
					}
					pair = utf16.DecodeRune(r, low)
				}
				if r = pair; r == utf8.RuneError {
					p.i = was
				}
			}
			b = utf8.AppendRune(b, r)
		default:
			p.i--
			return "", p.errorf("invalid escape %q", c)
		}
	}
	return "", errJSONEnd
}

// hex reads four hexadecimal digits.
func (p *jsonParser) hex() (rune, error) {
	var r rune
	for range 4 {
		if p.i >= len(p.s) {
			return 0, errJSONEnd
		}
		c := p.s[p.i]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, p.errorf("invalid character %q in \\u", c)
		}
		r = r<<4 | rune(c)
		p.i++
	}
	return r, nil
}
