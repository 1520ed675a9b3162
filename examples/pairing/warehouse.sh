# Stands in for the warehouse: tells from which shelf a line of an order was
# packed. $ENGINE_KEY is the same when it is asked again for the same line.
set -eu
case "$SKU" in
unicorn*)
	echo "no $SKU on any shelf" >&2
	exit 1
	;;
esac
printf '{"shelf": "shelf %d"}\n' "${#SKU}"
