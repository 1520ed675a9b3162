# Stands in for the platform that services run on: `kubectl`, `nomad`, a script
# of yours. It gets $COMMIT and $IMAGE, prints a JSON object, and may be called
# twice for the same commit: every call of one firing has the same $ENGINE_KEY.
set -eu
case "$IMAGE" in
*broken*)
	echo "$IMAGE does not start" >&2
	exit 1
	;;
esac
case "$1" in
deploy)
	printf '{"url": "https://%s.example.com"}\n' "$COMMIT"
	;;
rollback)
	# A real one looks first whether the commit is still what runs.
	printf '{"image": "%s:previous"}\n' "${IMAGE%%:*}"
	;;
esac
