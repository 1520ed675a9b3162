// Package all is the list of the source types that come with the engine. A
// new type adds one line here.
package all

import (
	"github.com/sensor-engine/engine/sources"
	"github.com/sensor-engine/engine/sources/calendar"
	"github.com/sensor-engine/engine/sources/driver"
	"github.com/sensor-engine/engine/sources/generic"
	"github.com/sensor-engine/engine/sources/ticker"
	"github.com/sensor-engine/engine/sources/webhook"
)

// All returns every source type, sorted by name.
func All() sources.Registry {
	return sources.Registry{
		calendar.Factory(),
		driver.Factory(),
		generic.Factory(),
		ticker.Factory(),
		webhook.Factory(),
	}
}
