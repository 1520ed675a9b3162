package endpoints

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources/ingress"
)

// payload is what a request is mapped to, as JSON: the query of a GET; else the
// body, by its content type: JSON as it came, a form as an object with the
// query, text as a string, anything without a content type as a string in
// base64; {} when there is none.
func payload(r *http.Request, body []byte) (json.RawMessage, *ingress.Refusal) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return nil, ingress.Refuse(http.StatusBadRequest, "the query is not valid")
		}
		return object(query)
	}
	if len(body) == 0 {
		return json.RawMessage("{}"), nil
	}
	contentType := r.Header.Get("Content-Type")
	if contentType == "" {
		return bus.AppendJSONString(nil, base64.StdEncoding.EncodeToString(body)), nil
	}
	mt, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, ingress.Refuse(http.StatusUnsupportedMediaType, "request body type is not supported: %s", printable(contentType))
	}
	switch {
	case bus.IsJSON(mt):
		return valid(body)
	case mt == "application/x-www-form-urlencoded":
		if body[0] == '{' || body[0] == '[' { // what `curl -d` sends without a content type
			if data, ref := valid(body); ref == nil {
				return data, nil
			}
		}
		fields, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, ingress.Refuse(http.StatusBadRequest, "request body is not a form")
		}
		return form(r, fields, nil)
	case mt == "multipart/form-data":
		fields, files, ref := parts(body, params["boundary"])
		if ref != nil {
			return nil, ref
		}
		return form(r, fields, files)
	case mt == "text/plain":
		if !utf8.Valid(body) {
			return nil, ingress.Refuse(http.StatusBadRequest, "request body is not UTF-8")
		}
		return bus.AppendJSONString(nil, string(body)), nil
	case mt == "application/octet-stream":
		return bus.AppendJSONString(nil, base64.StdEncoding.EncodeToString(body)), nil
	}
	return nil, ingress.Refuse(http.StatusUnsupportedMediaType, "request body type is not supported: %s", printable(mt))
}

func valid(body []byte) (json.RawMessage, *ingress.Refusal) {
	if !bus.ValidJSON(body) || !utf8.Valid(body) {
		return nil, ingress.Refuse(http.StatusBadRequest, "request body is not json")
	}
	return body, nil
}

// printable bounds what an answer repeats of a request.
func printable(s string) string {
	const limit = 100
	return strings.ToValidUTF8(s[:min(len(s), limit)], "?")
}

func object(values url.Values) (json.RawMessage, *ingress.Refusal) {
	fields, ok := ingress.Fields(values)
	if !ok {
		return nil, ingress.Refuse(http.StatusBadRequest, "the query is not UTF-8")
	}
	return marshal(fields)
}

func marshal(v any) (json.RawMessage, *ingress.Refusal) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, ingress.Refuse(http.StatusBadRequest, "request body is not a form")
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// form is the object of a form and the query of its request. Of a name in
// both, the field comes first.
func form(r *http.Request, fields url.Values, files map[string][]any) (json.RawMessage, *ingress.Refusal) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, ingress.Refuse(http.StatusBadRequest, "the query is not valid")
	}
	for name, values := range query {
		fields[name] = append(fields[name], values...)
	}
	out, ok := ingress.Fields(fields)
	if !ok {
		return nil, ingress.Refuse(http.StatusBadRequest, "request body is not UTF-8")
	}
	for name, values := range files {
		switch has, ok := out[name]; {
		case ok:
			list, several := has.([]any)
			if !several {
				list = []any{has}
			}
			out[name] = append(list, values...)
		case len(values) == 1:
			out[name] = values[0]
		default:
			out[name] = values
		}
	}
	return marshal(out)
}

// maxParts bounds the parts of a form.
const maxParts = 1000

// parts reads a multipart form: its fields, and its files as objects of
// filename, contentType and data, which is in base64.
func parts(body []byte, boundary string) (fields url.Values, files map[string][]any, ref *ingress.Refusal) {
	fields, files = url.Values{}, map[string][]any{}
	bad := ingress.Refuse(http.StatusBadRequest, "request body is not a form")
	if boundary == "" {
		return nil, nil, bad
	}
	rd := multipart.NewReader(bytes.NewReader(body), boundary)
	for n := 0; ; n++ {
		part, err := rd.NextPart()
		if err == io.EOF { //nolint:errorlint // as documented
			return fields, files, nil
		}
		if err != nil || n == maxParts {
			return nil, nil, bad
		}
		data, err := io.ReadAll(part) // of a body that is bounded
		name := part.FormName()
		if err != nil || !utf8.ValidString(name) {
			return nil, nil, bad
		}
		switch file := part.FileName(); {
		case name == "":
		case file == "":
			fields[name] = append(fields[name], string(data))
		default:
			files[name] = append(files[name], map[string]any{
				"filename": strings.ToValidUTF8(file, "?"), "contentType": part.Header.Get("Content-Type"), "data": base64.StdEncoding.EncodeToString(data),
			})
		}
	}
}

// secure reports whether a request came by HTTPS, to us or to the proxy in
// front.
func secure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	proto, _, _ := strings.Cut(r.Header.Get("X-Forwarded-Proto"), ",")
	return strings.EqualFold(strings.TrimSpace(proto), "https")
}

// httpContext is the JSON object that tells a function of its request: what
// expressions see of it, the names that Dispatch had for the same, and the
// headers by their names. Credentials are left out.
func (h *handler) httpContext(r *http.Request, client string) json.RawMessage {
	b := ingress.AppendRequest(make([]byte, 0, 1024), r, h.params, h.auth)
	b = b[:len(b)-1] // its closing brace
	taken := []string{"method", "path", "params", "query", "headers"}
	member := func(name, value string) {
		b = append(b, ',')
		b = bus.AppendJSONString(b, name)
		b = append(b, ':')
		b = bus.AppendJSONString(b, value)
		taken = append(taken, name)
	}
	scheme := "http"
	if secure(r) {
		scheme = "https"
	}
	member("uri", r.URL.Path)
	member("args", r.URL.RawQuery)
	member("request", r.Method+" "+r.RequestURI+" "+r.Proto)
	member("scheme", scheme)
	for _, m := range [...][2]string{{"request_uri", r.RequestURI}, {"server_protocol", r.Proto}, {"upstream_uri", h.spec.Function}} {
		member(m[0], m[1])
		member(strings.ReplaceAll(m[0], "_", "-"), m[1])
	}
	if client != "" {
		member("client", client)
	}
	for name, value := range ingress.PlainHeaders(r, h.auth) {
		if !slices.Contains(taken, name) {
			member(name, value)
		}
	}
	return append(b, '}')
}
