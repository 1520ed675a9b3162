package specs

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// field is what the tags of a struct field say.
type field struct {
	name         string
	index        []int
	typ          reflect.Type
	required     bool
	enum         []string
	min, max     string
	doc, example string
	short        string
	// ref is the kind of the resources that the text names, "" for none.
	ref Kind
}

// structInfo is the fields of a struct type, embedded inline ones included.
type structInfo struct {
	fields []field
	names  []string
	// pos is the index of the field that takes the place of the struct.
	pos []int
}

func (s *structInfo) field(name string) *field {
	for i := range s.fields {
		if s.fields[i].name == name {
			return &s.fields[i]
		}
	}
	return nil
}

var (
	posType          = reflect.TypeFor[Pos]()
	durationType     = reflect.TypeFor[Duration]()
	sizeType         = reflect.TypeFor[Size]()
	exprType         = reflect.TypeFor[Expr]()
	textType         = reflect.TypeFor[Text]()
	templateType     = reflect.TypeFor[Template]()
	valueType        = reflect.TypeFor[Value]()
	secretRefType    = reflect.TypeFor[SecretRef]()
	textOrSecretType = reflect.TypeFor[TextOrSecret]()
	settingsType     = reflect.TypeFor[Settings]()
	triggerType      = reflect.TypeFor[Trigger]()
	deadLetterType   = reflect.TypeFor[DeadLetter]()
	fromType         = reflect.TypeFor[From]()
)

// typeTable remembers what was found out about struct types. It belongs to one
// load and is not safe for concurrent use.
type typeTable map[reflect.Type]*structInfo

func (t typeTable) info(typ reflect.Type) *structInfo {
	if s := t[typ]; s != nil {
		return s
	}
	s := &structInfo{}
	s.collect(typ, nil)
	for _, f := range s.fields {
		s.names = append(s.names, f.name)
	}
	t[typ] = s
	return s
}

func (s *structInfo) collect(typ reflect.Type, index []int) {
	for i := range typ.NumField() {
		sf := typ.Field(i)
		at := append(slices.Clone(index), i)
		if sf.Type == posType {
			if sf.Name == "Pos" && len(index) == 0 {
				s.pos = at
			}
			continue
		}
		name, opts, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		if name == "-" || !sf.IsExported() {
			continue
		}
		if strings.Contains(opts, "inline") && sf.Type.Kind() == reflect.Struct {
			s.collect(sf.Type, at)
			continue
		}
		if name == "" {
			name = strings.ToLower(sf.Name)
		}
		f := field{
			name: name, index: at, typ: sf.Type, required: sf.Tag.Get("required") == "true",
			min: sf.Tag.Get("min"), max: sf.Tag.Get("max"), doc: sf.Tag.Get("doc"), example: sf.Tag.Get("example"),
			ref: Kind(sf.Tag.Get("ref")), short: sf.Tag.Get("short"),
		}
		if e := sf.Tag.Get("enum"); e != "" {
			f.enum = strings.Split(e, ",")
		}
		s.fields = append(s.fields, f)
	}
}

// decoder decodes one document.
type decoder struct {
	*source
	types Types
	table typeTable
	ref   Ref
	uses  []use
}

// use is a reference to another resource, found while decoding.
type use struct {
	ref Ref
	// part is the event or secret key asked for, "" for none.
	part string
	pos  Pos
	path string
}

func (d *decoder) place(n *node) Pos { return d.pos(n.line, n.col) }

func (d *decoder) errorf(n *node, path string, code Code, hint, format string, args ...any) {
	d.diagnose(d.place(n), Error, path, code, hint, fmt.Sprintf(format, args...))
}

func (d *decoder) diagnose(pos Pos, sev Severity, path string, code Code, hint, message string) {
	d.add(Diagnostic{Pos: pos, Severity: sev, Code: code, Ref: d.ref, Path: path, Message: message, Hint: hint})
}

func (d *decoder) wrongType(n *node, path, want, hint string) {
	d.errorf(n, path, CodeWrongType, hint, "expected %s, found %s", want, n.describe())
}

// mapping checks that n is a mapping.
func (d *decoder) mapping(n *node, path, hint string) bool {
	if n.kind != mapNode {
		d.wrongType(n, path, "a mapping", hint)
	}
	return n.kind == mapNode
}

// structure decodes a mapping into a struct. other is asked about keys that
// are no fields, and names are offered in hints beside the fields; both may be
// nil.
func (d *decoder) structure(n *node, v reflect.Value, path string, names []string, other func(p pair) bool) {
	info := d.table.info(v.Type())
	if !d.mapping(n, path, "keys: "+strings.Join(info.names, ", ")) {
		return
	}
	if info.pos != nil {
		v.FieldByIndex(info.pos).Set(reflect.ValueOf(d.place(n)))
	}
	for _, p := range n.pairs {
		f := info.field(p.key.value)
		if f == nil {
			if other == nil || !other(p) {
				d.unknownKey(p.key, path, slices.Concat(info.names, names))
			}
			continue
		}
		d.value(p.val, v.FieldByIndex(f.index), join(path, f.name), f)
	}
	d.checkRequired(n, info, path)
}

func (d *decoder) unknownKey(key *node, path string, names []string) {
	d.errorf(key, join(path, key.value), CodeUnknownKey, d.hint(key.value, names), "unknown key %q", key.value)
}

func (d *decoder) checkRequired(n *node, info *structInfo, path string) {
	for _, f := range info.fields {
		if !f.required {
			continue
		}
		val := n.get(f.name)
		if val == nil {
			d.errorf(n, join(path, f.name), CodeMissingKey, hintFor(&f), "%q is missing", f.name)
			continue
		}
		if val.null() || val.kind == scalarNode && val.value == "" && f.typ.Kind() == reflect.String ||
			val.kind == listNode && len(val.items) == 0 || val.kind == mapNode && len(val.pairs) == 0 && f.typ.Kind() == reflect.Map {
			d.errorf(val, join(path, f.name), CodeMissingKey, hintFor(&f), "%q is empty", f.name)
		}
	}
}

func hintFor(f *field) string {
	if f.example != "" {
		return "for example " + f.name + ": " + f.example
	}
	return strings.TrimSuffix(f.doc, ".")
}

// value decodes n into v. f carries the tags of the field; nil for elements.
func (d *decoder) value(n *node, v reflect.Value, path string, f *field) {
	switch v.Type() {
	case templateType:
		v.Set(reflect.ValueOf(Template{Root: d.template(n, path), Pos: d.place(n), Path: path, Set: true}))
		return
	case valueType:
		v.Set(reflect.ValueOf(Value{Root: d.free(n, path), Set: true}))
		return
	case exprType:
		v.Set(reflect.ValueOf(d.expr(n, path)))
		return
	}
	if n.null() {
		return // as if it were not there
	}
	switch v.Type() {
	case durationType:
		d.duration(n, v, path, f)
		return
	case sizeType:
		d.size(n, v, path, f)
		return
	case textType:
		if n.kind != scalarNode {
			d.wrongType(n, path, "text", "")
			return
		}
		v.Set(reflect.ValueOf(d.text(n, path)))
		return
	case secretRefType:
		d.secretRef(n, v, path)
		return
	case textOrSecretType:
		d.textOrSecret(n, v.Addr().Interface().(*TextOrSecret), path)
		return
	case settingsType:
		v.Set(reflect.ValueOf(d.settings(n, path)))
		return
	case triggerType:
		d.trigger(n, v.Addr().Interface().(*Trigger), path)
		return
	case deadLetterType:
		d.deadLetter(n, v.Addr().Interface().(*DeadLetter), path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		e := reflect.New(v.Type().Elem())
		d.value(n, e.Elem(), path, f)
		v.Set(e)
	case reflect.Struct:
		if info := d.table.info(v.Type()); f != nil && f.short != "" && n.kind == scalarNode {
			only := info.field(f.short)
			d.value(n, v.FieldByIndex(only.index), path, only)
			return
		}
		d.structure(n, v, path, nil, nil)
	case reflect.Slice:
		if n.kind != listNode {
			hint := "begin each item with -"
			if n.kind == scalarNode {
				hint = "write [" + quoteHint(n.value) + "]"
			}
			d.wrongType(n, path, "a list", hint)
			return
		}
		s := reflect.MakeSlice(v.Type(), len(n.items), len(n.items))
		for i, item := range n.items {
			at := path + "[" + strconv.Itoa(i) + "]"
			d.element(item, s.Index(i), at, f)
		}
		v.Set(s)
	case reflect.Map:
		if !d.mapping(n, path, "") {
			return
		}
		m := reflect.MakeMapWithSize(v.Type(), len(n.pairs))
		for _, p := range n.pairs {
			e := reflect.New(v.Type().Elem()).Elem()
			d.element(p.val, e, join(path, p.key.value), f)
			m.SetMapIndex(reflect.ValueOf(p.key.value).Convert(v.Type().Key()), e)
		}
		v.Set(m)
	case reflect.String:
		d.str(n, v, path, f)
	case reflect.Bool:
		d.boolean(n, v, path)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64,
		reflect.Float32, reflect.Float64:
		d.numeric(n, v, path, f)
	default:
		d.errorf(n, path, CodeWrongType, "", "the program cannot decode fields of type %s", v.Type())
	}
}

// element decodes an element of a list or mapping. Other than a field, it is
// there even when it is empty, and must not pass for a zero value.
func (d *decoder) element(n *node, v reflect.Value, path string, f *field) {
	if t := v.Type(); n.null() && t != templateType && t != valueType && t != exprType {
		d.wrongType(n, path, "a value", `remove it, or write "" for empty text`)
		return
	}
	d.value(n, v, path, elem(f))
}

// elem is what holds for each element of a list or mapping: its enum, and what it names.
func elem(f *field) *field {
	if f == nil || f.enum == nil && f.ref == "" {
		return nil
	}
	return &field{enum: f.enum, ref: f.ref}
}

func (d *decoder) str(n *node, v reflect.Value, path string, f *field) {
	if n.kind != scalarNode {
		d.wrongType(n, path, "text", "")
		return
	}
	v.SetString(n.value)
	if f != nil && f.enum != nil && !slices.Contains(f.enum, n.value) {
		d.errorf(n, path, CodeUnknownValue, d.hint(n.value, f.enum), "%s is not allowed here", n.describe())
	}
	if f != nil && f.ref != "" && n.value != "" {
		d.uses = append(d.uses, use{Ref{f.ref, n.value}, "", d.place(n), path})
	}
}

func (d *decoder) boolean(n *node, v reflect.Value, path string) {
	if n.kind == scalarNode {
		if n.tag == "!!bool" {
			if b, p := n.free(); p == nil {
				v.SetBool(b.(bool))
				return
			}
		}
		switch strings.ToLower(n.value) {
		case "yes", "on", "y", "true":
			d.wrongType(n, path, "true or false", "write true without quotes")
			return
		case "no", "off", "n", "false":
			d.wrongType(n, path, "true or false", "write false without quotes")
			return
		}
	}
	d.wrongType(n, path, "true or false", "")
}

func (d *decoder) numeric(n *node, v reflect.Value, path string, f *field) {
	want := "a whole number"
	if v.CanFloat() {
		want = "a number"
	}
	if n.kind != scalarNode || n.tag != "!!int" && n.tag != "!!float" {
		hint := ""
		if n.kind == scalarNode && n.style == quotedStyle && simpleNumber.MatchString(n.value) {
			hint = "write " + n.value + " without quotes"
		}
		d.wrongType(n, path, want, hint)
		return
	}
	x, p := n.number()
	if p != nil {
		// As a number an underscore can mean only one thing.
		if x == nil || p.code != CodeAmbiguous {
			hint := p.tip
			if p.code == CodeAmbiguous {
				hint = "write " + decimal(n.value)
			}
			d.errorf(n, path, p.code, hint, "%s", p.what)
			return
		}
	}
	if v.CanFloat() {
		fl, ok := x.(float64)
		if !ok {
			fl = float64(x.(int64))
		}
		v.SetFloat(fl)
		d.limit(n, path, f, func(s string) (int, bool) {
			l, err := strconv.ParseFloat(s, 64)
			return compare(fl, l), err == nil
		})
		return
	}
	i, ok := x.(int64)
	if !ok {
		d.wrongType(n, path, want, "")
		return
	}
	switch {
	case v.CanInt() && !v.OverflowInt(i):
		v.SetInt(i)
	case v.CanUint() && i >= 0 && !v.OverflowUint(uint64(i)):
		v.SetUint(uint64(i))
	default:
		d.errorf(n, path, CodeOutOfRange, "", "%s is out of range", n.describe())
		return
	}
	d.limit(n, path, f, func(s string) (int, bool) {
		l, err := strconv.ParseInt(s, 10, 64)
		return compare(i, l), err == nil
	})
}

func compare[T int64 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// limit checks a value against the min and max tags.
func (d *decoder) limit(n *node, path string, f *field, cmp func(limit string) (int, bool)) {
	if f == nil {
		return
	}
	if c, ok := cmp(f.min); f.min != "" && ok && c < 0 {
		d.errorf(n, path, CodeOutOfRange, "at least "+f.min, "%s is too small", n.describe())
	}
	if c, ok := cmp(f.max); f.max != "" && ok && c > 0 {
		d.errorf(n, path, CodeOutOfRange, "at most "+f.max, "%s is too large", n.describe())
	}
}

func (d *decoder) duration(n *node, v reflect.Value, path string, f *field) {
	if n.kind != scalarNode {
		d.wrongType(n, path, "a duration", "for example 10s")
		return
	}
	t, err := ParseDuration(n.value)
	if err != nil {
		e, _ := errors.AsType[*formatError](err)
		d.errorf(n, path, CodeInvalidDuration, e.hint, "%s", e.what)
		return
	}
	v.SetInt(int64(t))
	d.limit(n, path, f, func(s string) (int, bool) {
		l, err := ParseDuration(s)
		return compare(int64(t), int64(l)), err == nil
	})
}

func (d *decoder) size(n *node, v reflect.Value, path string, f *field) {
	if n.kind != scalarNode {
		d.wrongType(n, path, "a size", "for example 1MiB")
		return
	}
	s, err := ParseSize(n.value)
	if err != nil {
		e, _ := errors.AsType[*formatError](err)
		d.errorf(n, path, CodeInvalidSize, e.hint, "%s", e.what)
		return
	}
	v.SetInt(int64(s))
	d.limit(n, path, f, func(l string) (int, bool) {
		m, err := ParseSize(l)
		return compare(int64(s), int64(m)), err == nil
	})
}

// textPos tells where the characters of a scalar's text are in the file.
func (d *decoder) textPos(n *node) TextPos {
	p := TextPos{Pos: d.place(n)}
	switch n.style {
	case plainStyle:
		p.Fixed = !strings.HasPrefix(d.lines.from(n.line, n.col), n.value)
	case quotedStyle:
		if rest := d.lines.from(n.line, n.col); len(rest) > 0 && strings.HasPrefix(rest[1:], n.value) {
			p.Col++
		} else {
			p.Fixed = true
		}
	case foldedStyle:
		p.Fixed = true
	case literalStyle:
		// The indicator is at the node's place, the text on the lines below.
		p.Fixed = true
		for i, line := range strings.Split(n.value, "\n") {
			if line == "" {
				continue
			}
			text := d.lines.line(n.line + 1 + i)
			if before, ok := strings.CutSuffix(text, line); ok && strings.Trim(before, " ") == "" {
				p.Line, p.Col, p.Indent, p.Fixed = p.Line+1, len(before)+1, len(before)+1, false
			}
			break
		}
	}
	return p
}

func (d *decoder) expr(n *node, path string) Expr {
	if n.kind != scalarNode {
		d.wrongType(n, path, "an expression", "put it in quotes")
		return Expr{}
	}
	src := strings.TrimRight(n.value, "\n")
	trimmed := strings.TrimSpace(src)
	switch {
	case n.null() || trimmed == "":
		d.errorf(n, path, CodeEmptyExpression, "write an expression or remove the key", "the expression is empty")
	case strings.HasPrefix(trimmed, "${") && strings.HasSuffix(trimmed, "}"):
		d.errorf(n, path, CodeExpressionBraces, "write "+strings.TrimSpace(trimmed[2:len(trimmed)-1]),
			"this is an expression anyway, ${ } is not needed")
	}
	return Expr{Source: src, Pos: d.textPos(n)}
}

func (d *decoder) text(n *node, path string) Text {
	t := Text{Value: n.value, Pos: d.textPos(n), Path: path}
	if i := unterminated(n.value); i >= 0 {
		line := strings.Count(n.value[:i], "\n")
		col := utf8.RuneCountInString(n.value[strings.LastIndexByte(n.value[:i], '\n')+1 : i])
		hint := "add }, or write $${ for the characters themselves"
		if n.comment && n.style == plainStyle {
			hint = "what follows # is a comment to YAML; put the value in quotes"
		}
		d.diagnose(t.Pos.At(line+1, col+1), Error, path, CodeUnterminated, hint, "${ has no closing }")
	}
	return t
}

func (d *decoder) scalar(n *node, path string) any {
	v, p := n.free()
	if p != nil {
		d.diagnose(d.place(n), p.severity, path, p.code, p.tip, p.what)
	}
	return v
}

// template decodes a free value whose strings may contain expressions.
func (d *decoder) template(n *node, path string) any {
	return d.any(n, path, func(n *node, path string) any {
		if _, ok := d.scalar(n, path).(string); ok {
			return d.text(n, path)
		}
		v, _ := n.free()
		return v
	})
}

func (d *decoder) free(n *node, path string) any { return d.any(n, path, d.scalar) }

func (d *decoder) any(n *node, path string, scalar func(*node, string) any) any {
	switch n.kind {
	case listNode:
		out := make([]any, len(n.items))
		for i, item := range n.items {
			out[i] = d.any(item, path+"["+strconv.Itoa(i)+"]", scalar)
		}
		return out
	case mapNode:
		out := make(map[string]any, len(n.pairs))
		for _, p := range n.pairs {
			out[p.key.value] = d.any(p.val, join(path, p.key.value), scalar)
		}
		return out
	case scalarNode:
	}
	return scalar(n, path)
}

func (d *decoder) secretRef(n *node, v reflect.Value, path string) {
	const want = "a reference to a Secret"
	if n.kind == scalarNode && !n.null() { // the text may be the secret itself
		d.errorf(n, path, CodeWrongType, "put the value into a Secret, and its {name: …, key: …} here", "expected %s, found text", want)
		return
	}
	if inner := n.get("secret"); inner != nil && len(n.pairs) == 1 {
		d.errorf(inner, path, CodeWrongType, "write {name: …, key: …} without secret:", "expected %s, found one below secret", want)
		return
	}
	d.structure(n, v, path, nil, nil)
	s := v.Addr().Interface().(*SecretRef)
	if s.Name != "" && s.Key != "" {
		at := n
		if m := n.get("name"); m != nil {
			at = m
		}
		d.uses = append(d.uses, use{Ref{KindSecret, s.Name}, s.Key, d.place(at), path})
	}
}

func (d *decoder) textOrSecret(n *node, t *TextOrSecret, path string) {
	switch n.kind {
	case scalarNode:
		t.Text = d.text(n, path)
	case listNode:
		d.wrongType(n, path, "text or {secret: {name, key}}", "")
	default:
		var from struct {
			Secret *SecretRef `yaml:"secret" required:"true" doc:"Reference to the value in a Secret."`
			Prefix string     `yaml:"prefix" doc:"Text before the secret value."`
		}
		if n.get("secret") == nil && n.get("name") != nil && n.get("key") != nil {
			d.errorf(n, path, CodeWrongType, "write {secret: {name: …, key: …}}", "a reference to a Secret stands below secret here")
			return
		}
		d.structure(n, reflect.ValueOf(&from).Elem(), path, nil, nil)
		t.Secret, t.Prefix = from.Secret, from.Prefix
	}
}

// config decodes the configuration of a source type or function kind and asks
// it to validate itself. A config of nothing is one of defaults.
func (d *decoder) config(n *node, t *Type, path string, names []string, other func(p pair) bool) any {
	cfg := t.New()
	if n.null() {
		n = &node{kind: mapNode, tag: "!!map", line: n.line, col: n.col, size: 1, height: 1}
	}
	before := d.errors
	d.structure(n, reflect.ValueOf(cfg).Elem(), path, names, other)
	// What a half decoded config says about itself would mislead.
	if v, ok := cfg.(interface{ Validate(*Checker) }); ok && d.errors == before {
		c := &Checker{ref: d.ref, prefix: path, place: func(field string) Pos { return d.place(n.find(field)) }}
		v.Validate(c)
		for _, f := range c.found {
			d.add(f)
		}
	}
	return cfg
}
