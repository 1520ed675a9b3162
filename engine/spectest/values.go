package spectest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
)

// jsonValue is v as JSON has it: objects map[string]any, lists []any, whole
// numbers int64.
func jsonValue(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return bus.ParseJSON(b)
}

// input is what the function of a trigger gets; path is where its input is
// among the rendered values, "" for nowhere.
func input(t *specs.Trigger, path string, ev *bus.Event, rendered map[string]any) (any, error) {
	if t.Input.Set {
		return template(t.Input, rendered)
	}
	if path != "" {
		return jsonValue(rendered[path])
	}
	if ev == nil {
		return nil, nil
	}
	v, err := ev.Value()
	if err != nil {
		return nil, err
	}
	return jsonValue(v)
}

// template is the value of a template: the rendered one, or what it says
// itself when it has no expressions.
func template(t specs.Template, rendered map[string]any) (any, error) {
	v, ok := rendered[t.Path]
	if !ok {
		c, found := expression.CompileTemplate(t, expression.CallScope())
		if err := found.Err(); err != nil {
			return nil, err
		}
		var err error
		if v, err = c.Render(nil); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Path, err)
		}
	}
	return jsonValue(v)
}

func text(t specs.Text, rendered map[string]any) (any, error) {
	if v, ok := rendered[t.Path]; ok {
		return jsonValue(v)
	}
	c, found := expression.CompileText(t, expression.CallScope())
	if err := found.Err(); err != nil {
		return nil, err
	}
	return c.RenderString(nil)
}

// config is what the texts and templates of an inline function have become, by
// key. base is the path of the function in its resource.
func config(call *specs.Call, base string, rendered map[string]any) (any, error) {
	w := configWalk{base: base, rendered: rendered, out: map[string]any{}}
	if err := w.value(reflect.ValueOf(call.Config)); err != nil {
		return nil, err
	}
	return w.out, nil
}

type configWalk struct {
	base     string
	rendered map[string]any
	out      map[string]any
}

// put sets the value at a path below the config.
func (w *configWalk) put(path string, v any) {
	at := w.out
	keys := steps(strings.TrimPrefix(path, w.base))
	for i, k := range keys {
		if i == len(keys)-1 {
			at[k] = v
			return
		}
		next, ok := at[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[k] = next
		}
		at = next
	}
}

// steps splits a path such as `.headers["X-A"]` or `.items[2].name`. Places in
// lists are keys like the others.
func steps(path string) (keys []string) {
	for path != "" {
		if quoted, ok := strings.CutPrefix(path, `["`); ok {
			key, rest, _ := strings.Cut(quoted, `"]`)
			keys, path = append(keys, key), rest
			continue
		}
		path = path[1:] // "." or "["
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		keys, path = append(keys, strings.TrimSuffix(path[:end], "]")), path[end:]
	}
	return keys
}

func (w *configWalk) value(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return w.value(v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if err := w.value(v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if err := w.value(v.MapIndex(k)); err != nil {
				return err
			}
		}
	case reflect.Struct:
		return w.structure(v)
	}
	return nil
}

func (w *configWalk) structure(v reflect.Value) error {
	var value any
	var err error
	path := ""
	switch f := v.Interface().(type) {
	case specs.Text:
		path = f.Path
		value, err = text(f, w.rendered)
	case specs.Template:
		if path = f.Path; f.Set {
			value, err = template(f, w.rendered)
		} else {
			path = ""
		}
	default:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			if err := w.value(v.Field(i)); err != nil {
				return err
			}
		}
		return nil
	}
	if err == nil && strings.HasPrefix(path, w.base) && len(path) > len(w.base) {
		w.put(path, value)
	}
	return err
}
