package triggers

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// Literal returns the text of t when it holds no expression, with `$${`
// turned into `${`; ok is false when it holds one. A plain text costs one
// search and no allocation.
func Literal(t specs.Text) (value string, ok bool) {
	i := strings.Index(t.Value, "${")
	if i < 0 {
		return t.Value, true
	}
	for s := t.Value; i >= 0; i = strings.Index(s, "${") {
		if i == 0 || s[i-1] != '$' {
			return "", false
		}
		s = s[i+2:]
	}
	return strings.ReplaceAll(t.Value, "$${", "${"), true
}

// Constant returns the value of a field that is no secret and holds no
// expression, so that it is known before any call.
func Constant(t specs.TextOrSecret) (value string, ok bool) {
	if t.Secret != nil {
		return "", false
	}
	return Literal(t.Text)
}

// NewValues returns the values of a config whose templates were rendered
// before, keyed by the path of the field. A constant needs no entry. secrets
// may be nil when there are none.
func NewValues(rendered map[string]any, secrets func(specs.SecretRef) (string, error)) Values {
	return &values{rendered: rendered, secrets: secrets}
}

// values implements Values over rendered values, and over compiled templates
// when compiled is set. It belongs to one call.
type values struct {
	rendered map[string]any
	compiled *Compiled
	call     *Call
	env      map[string]any
	secrets  func(specs.SecretRef) (string, error)
}

// Text implements [Values].
func (v *values) Text(t specs.Text) (string, error) {
	if s, ok := Literal(t); ok {
		return s, nil
	}
	if v.compiled != nil {
		p, env, err := v.template(t.Path)
		if err != nil {
			return "", err
		}
		s, err := p.RenderString(env)
		if err != nil {
			return "", rendering(err)
		}
		return s, nil
	}
	r, ok := v.rendered[t.Path]
	if !ok {
		return "", notRendered(t.Path)
	}
	switch r := r.(type) {
	case string:
		return r, nil
	case nil:
		return "", Permanentf("%s: the value is missing", t.Path)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return "", Permanentf("%s: %w", t.Path, err)
	}
	return string(b), nil
}

// Template implements [Values].
func (v *values) Template(t specs.Template) (any, error) {
	if !t.Set {
		return nil, nil
	}
	if v.compiled != nil {
		p, env, err := v.template(t.Path)
		if err != nil {
			return nil, err
		}
		r, err := p.Render(env)
		if err != nil {
			return nil, rendering(err)
		}
		return r, nil
	}
	if r, ok := v.rendered[t.Path]; ok {
		return r, nil
	}
	r, ok := literal(t.Root)
	if !ok {
		return nil, notRendered(t.Path)
	}
	return r, nil
}

// rendering is the error of a template. What it does not find was not given.
func rendering(err error) error {
	if m, ok := errors.AsType[*expression.MissingError](err); ok {
		return Errorf(InputError, "%w; give it, or a default: ${ %s ?? … }", err, m.Path)
	}
	return &PermanentError{err}
}

// literal returns a value whose strings hold no expressions.
func literal(root any) (any, bool) {
	switch root := root.(type) {
	case specs.Text:
		return Literal(root)
	case []any:
		out := make([]any, len(root))
		for i, e := range root {
			var ok bool
			if out[i], ok = literal(e); !ok {
				return nil, false
			}
		}
		return out, true
	case map[string]any:
		out := make(map[string]any, len(root))
		for k, e := range root {
			var ok bool
			if out[k], ok = literal(e); !ok {
				return nil, false
			}
		}
		return out, true
	}
	return root, true
}

func notRendered(path string) error {
	return Permanentf("%s: no value was rendered for it when the trigger fired; the spec has changed since", path)
}

// TextOrSecret implements [Values].
func (v *values) TextOrSecret(t specs.TextOrSecret) (string, error) {
	if t.Secret == nil {
		return v.Text(t.Text)
	}
	s, err := v.Secret(*t.Secret)
	if err != nil {
		return "", err
	}
	return t.Prefix + s, nil
}

// Secret implements [Values].
func (v *values) Secret(ref specs.SecretRef) (string, error) {
	if v.secrets == nil {
		return "", Permanentf("secret %s, key %s: there are no secrets here", ref.Name, ref.Key)
	}
	return v.secrets(ref)
}

// template finds a compiled template and makes the environment it is rendered
// in, once per call.
func (v *values) template(path string) (*expression.Template, map[string]any, error) {
	p := v.compiled.templates[path]
	if p == nil {
		return nil, nil, Permanentf("%s: not a template of this config", path)
	}
	if v.env == nil && !p.Constant() {
		input, err := v.call.InputValue()
		if err != nil {
			return nil, nil, err
		}
		v.env = map[string]any{}
		if ev := v.call.Event; ev != nil {
			env, err := ev.Attributes(v.compiled.data, v.compiled.request)
			if err != nil {
				v.env = nil
				return nil, nil, Permanentf("%s: event %s: %w", path, ev.ID, err)
			}
			v.env = env
		}
		v.env["input"] = input
	}
	return p, v.env, nil
}

// Compiled holds the compiled templates of the config of a function that is
// called by name; those of an inline function are rendered by its sensor. It
// is safe for concurrent use.
type Compiled struct {
	templates     map[string]*expression.Template
	data, request bool
}

// CompileConfig compiles every [specs.Text], [specs.Template] and
// [specs.TextOrSecret] of a config as decoded by package specs, in the scope of
// a call (expression.CallScope). When there are errors the result is nil.
func CompileConfig(config any) (*Compiled, specs.Diagnostics) {
	c := &Compiled{}
	scope := expression.CallScope()
	var found specs.Diagnostics
	add := func(path string, t *expression.Template, ds specs.Diagnostics) {
		found = append(found, ds...)
		if t == nil {
			return
		}
		if c.templates == nil {
			c.templates = map[string]*expression.Template{}
		}
		c.templates[path] = t
		c.data = c.data || t.NeedsData()
		c.request = c.request || t.NeedsRequest()
	}
	walk(reflect.ValueOf(config), func(field any) {
		switch f := field.(type) {
		case specs.Text:
			if _, ok := Literal(f); !ok {
				t, ds := expression.CompileText(f, scope)
				add(f.Path, t, ds)
			}
		case specs.Template:
			if f.Set {
				t, ds := expression.CompileTemplate(f, scope)
				add(f.Path, t, ds)
			}
		}
	})
	if found.HasErrors() {
		return nil, found.Sort()
	}
	return c, found.Sort()
}

// walk calls visit for every specs.Text and specs.Template below v.
func walk(v reflect.Value, visit func(field any)) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			walk(v.Elem(), visit)
		}
	case reflect.Struct:
		switch f := v.Interface().(type) {
		case specs.Text, specs.Template:
			visit(f)
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				walk(v.Field(i), visit)
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			walk(v.Index(i), visit)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			walk(it.Value(), visit)
		}
	}
}

// Constant reports whether nothing in the config depends on a call.
func (c *Compiled) Constant() bool { return len(c.templates) == 0 }

// NeedsData reports whether a call may read the payload of its event.
func (c *Compiled) NeedsData() bool { return c.data }

// NeedsRequest reports whether a call may read the HTTP request of its event.
func (c *Compiled) NeedsRequest() bool { return c.request }

// Values returns the values of one call. Event and input are looked at when
// the first template is rendered; the payload is parsed only when a template
// reads it. The result belongs to the call and is not safe for concurrent use.
func (c *Compiled) Values(call *Call, secrets func(specs.SecretRef) (string, error)) Values {
	return &values{compiled: c, call: call, secrets: secrets}
}
