package expression

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// maxDepth is how deep a result may be nested.
const maxDepth = 1000

type canonicalState struct {
	depth int
	used  uint
}

// canonical returns v in the types that JSON has: nil, bool, int64, float64,
// string, []any, map[string]any. What has them already is not copied.
func canonical(v any, st *canonicalState) (any, error) {
	st.used++
	if st.used >= Budget {
		return nil, ErrBudget
	}
	switch v := v.(type) {
	case nil, bool, int64:
		return v, nil
	case string:
		st.used += text(len(v))
		return v, nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%v is no JSON number", v)
		}
		return v, nil
	case int:
		return int64(v), nil
	case []byte:
		return base64.StdEncoding.EncodeToString(v), nil
	case time.Time:
		return v.Format(time.RFC3339Nano), nil
	case time.Duration:
		return v.String(), nil
	case fmt.Stringer:
		return v.String(), nil
	}
	if st.depth++; st.depth > maxDepth {
		return nil, fmt.Errorf("a value is nested deeper than %d", maxDepth)
	}
	defer func() { st.depth-- }()
	switch v := v.(type) {
	case []any:
		return canonicalList(v, st)
	case map[string]any:
		return canonicalObject(v, st)
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32:
		return rv.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return int64(rv.Uint()), nil
	case reflect.Float32:
		return rv.Float(), nil
	case reflect.Slice, reflect.Array:
		list := make([]any, rv.Len())
		for i := range list {
			e, err := canonical(rv.Index(i).Interface(), st)
			if err != nil {
				return nil, err
			}
			list[i] = e
		}
		return list, nil
	case reflect.Map:
		object := make(map[string]any, rv.Len())
		for it := rv.MapRange(); it.Next(); {
			e, err := canonical(it.Value().Interface(), st)
			if err != nil {
				return nil, err
			}
			object[fmt.Sprint(it.Key().Interface())] = e
		}
		return object, nil
	}
	return nil, fmt.Errorf("a value of type %T cannot be given to a function", v)
}

func canonicalList(v []any, st *canonicalState) (any, error) {
	for i, e := range v {
		c, err := canonical(e, st)
		if err != nil {
			return nil, err
		}
		if same(c, e) {
			continue
		}
		// The first difference: copy, then convert the rest.
		out := make([]any, len(v))
		copy(out, v[:i])
		out[i] = c
		for j := i + 1; j < len(v); j++ {
			if out[j], err = canonical(v[j], st); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return v, nil
}

func canonicalObject(v map[string]any, st *canonicalState) (any, error) {
	var out map[string]any
	for k, e := range v {
		c, err := canonical(e, st)
		if err != nil {
			return nil, err
		}
		if same(c, e) {
			continue
		}
		if out == nil {
			out = make(map[string]any, len(v))
			maps.Copy(out, v)
		}
		out[k] = c
	}
	if out == nil {
		return v, nil
	}
	return out, nil
}

// same reports whether canonical left a value alone: it is of the same type
// and, for lists and objects, the same one.
func same(a, b any) bool {
	switch b := b.(type) {
	case nil, bool, int64, float64, string:
		return true
	case []any:
		a, ok := a.([]any)
		return ok && len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
	case map[string]any:
		a, ok := a.(map[string]any)
		return ok && reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
	}
	return false
}

// appendText appends v, which is canonical, as it stands in a text: strings as
// they are, numbers plain, the rest as compact JSON.
func appendText(dst []byte, v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return append(dst, v...), nil
	case int64:
		return strconv.AppendInt(dst, v, 10), nil
	case bool:
		return strconv.AppendBool(dst, v), nil
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return dst, err
	}
	return append(dst, strings.TrimSuffix(b.String(), "\n")...), nil
}

// parseJSON decodes one JSON text with whole numbers as int64 where they fit.
func parseJSON(s string) (any, error) {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return numbers(v)
}

func numbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n, nil
		}
		return strconv.ParseFloat(string(v), 64)
	case map[string]any:
		for k, e := range v {
			if v[k], err = numbers(e); err != nil {
				return nil, err
			}
		}
	case []any:
		for i, e := range v {
			if v[i], err = numbers(e); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
