package bus

import "strings"

// Extension attributes in which events of CloudEvents 0.1 keep what 1.0 has no
// place for.
const (
	// EventTypeVersionAttribute holds the eventTypeVersion.
	EventTypeVersionAttribute = "eventtypeversion"
	// ExtensionsAttribute holds the extensions of an event older than 1.0 as
	// the JSON object they came as. It is there only when 1.0 cannot say them:
	// names with other characters than small letters and digits, values that
	// are no text. Each is also an extension of its own, as far as it goes,
	// under its [PlainExtension] name.
	ExtensionsAttribute = "dispatchextensions"
)

// PlainExtension is the name of an extension without what CloudEvents 1.0 does
// not allow in it.
func PlainExtension(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return -1
	}, name)
}
