"""Requests to S3 that end: a store that accepts them and then says nothing is given up.

aiohttp's own time limit on reading does not begin before a request's body has been sent. A PUT
waits for `100 Continue` before that, and for a peer that takes no more bytes: both for ever.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ConnectionError as NoConnection
from botocore.exceptions import ReadTimeoutError

if TYPE_CHECKING:
    from aiobotocore.awsrequest import AioAWSResponse
    from botocore.awsrequest import AWSPreparedRequest

# Seconds, of each attempt (see `s3`). botocore's own are a minute each, so that an endpoint that
# takes no connection, or says nothing, would cost many.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 30
# A body may take its time on a slow line: 2 Mbit/s.
_SLOWEST_BYTES_A_SECOND = 250_000


class SilentStore(NoConnection):  # type: ignore[misc]
    """A request was not answered in time. botocore asks again; s3fs, knowing it not, does not.

    As botocore's own `ReadTimeoutError` it would be asked so many times five times.
    """

    fmt = '"{endpoint_url}" did not answer within {seconds:.0f} s'


class PatientSession(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's session, in which a request ends as `SilentStore` when its time is over.

    Bounds the time to the answer's head, and to its end where botocore reads it. A body that is
    streamed may take as long as it likes, but `READ_TIMEOUT` between two pieces.
    """

    async def send(self, request: AWSPreparedRequest) -> AioAWSResponse:
        """Send a request. Raises botocore's errors, and `SilentStore`."""
        patience = self._timeout.sock_read or READ_TIMEOUT
        headers = request.headers
        # Over https botocore sends checksums behind the body, whose length has then another name.
        length = headers.get("Content-Length") or headers.get("X-Amz-Decoded-Content-Length") or 0
        seconds = patience + int(length) / _SLOWEST_BYTES_A_SECOND
        try:
            # The connection has a limit of its own; it must be heard first.
            return await asyncio.wait_for(super().send(request), seconds + CONNECT_TIMEOUT)
        except (TimeoutError, ReadTimeoutError) as error:
            raise SilentStore(endpoint_url=request.url, seconds=seconds, error=error) from error
