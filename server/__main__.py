"""`python -I -m server`."""

from server.main import main

raise SystemExit(main())
