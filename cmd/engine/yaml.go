package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// writeYAML writes a JSON text as YAML, keys in their order. Only what JSON
// can say is ever written, so this is all of YAML that is needed.
func writeYAML(w io.Writer, b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out bytes.Buffer
	if err := yamlValue(&out, d, 0, true); err != nil {
		return err
	}
	_, err := w.Write(out.Bytes())
	return err
}

// yamlValue writes the next value and a line end. fresh says that the place is
// the beginning of an indented line, so that a mapping may begin right here.
func yamlValue(out *bytes.Buffer, d *json.Decoder, indent int, fresh bool) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	delim, nested := t.(json.Delim)
	switch {
	case !nested:
		yamlScalar(out, t, indent, fresh)
		return nil
	case !d.More():
		out.WriteString(gap(fresh) + map[json.Delim]string{'{': "{}", '[': "[]"}[delim] + "\n")
		_, err = d.Token()
		return err
	case !fresh:
		out.WriteByte('\n')
	}
	for first := true; d.More(); first = false {
		if !first || !fresh {
			out.WriteString(strings.Repeat(" ", indent))
		}
		if delim == '[' {
			out.WriteString("- ")
			if err := yamlValue(out, d, indent+2, true); err != nil {
				return err
			}
			continue
		}
		key, err := d.Token()
		if err != nil {
			return err
		}
		out.WriteString(yamlString(fmt.Sprint(key)) + ":")
		if err := yamlValue(out, d, indent+2, false); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

func gap(fresh bool) string {
	if fresh {
		return ""
	}
	return " "
}

func yamlScalar(out *bytes.Buffer, t json.Token, indent int, fresh bool) {
	s, ok := t.(string)
	switch {
	case !ok && t == nil:
		out.WriteString(gap(fresh) + "null\n")
	case !ok:
		fmt.Fprintf(out, "%s%v\n", gap(fresh), t)
	case yamlBlock(s):
		out.WriteString(gap(fresh) + "|")
		if !strings.HasSuffix(s, "\n") {
			out.WriteByte('-')
		}
		out.WriteByte('\n')
		for line := range strings.Lines(s) {
			if line != "\n" {
				out.WriteString(strings.Repeat(" ", max(indent, 2)))
			}
			out.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	default:
		out.WriteString(gap(fresh) + yamlString(s) + "\n")
	}
}

// yamlBlock reports whether s reads better as a literal block.
func yamlBlock(s string) bool {
	return strings.Contains(s, "\n") && !strings.HasSuffix(s, "\n\n") && !strings.HasPrefix(s, " ") && !strings.HasPrefix(s, "\n") &&
		!strings.ContainsFunc(s, func(r rune) bool {
			return r < ' ' && r != '\n' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 || r == 0xfeff
		})
}

var (
	yamlPlain = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./@+-]*( [A-Za-z0-9_./@+,()-]+)*$`)
	yamlWords = []string{"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
)

// yamlString is s as a plain or double-quoted scalar.
func yamlString(s string) string {
	if yamlPlain.MatchString(s) && !slices.Contains(yamlWords, strings.ToLower(s)) {
		return s
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string can always be encoded
	return strings.TrimSuffix(b.String(), "\n")
}
