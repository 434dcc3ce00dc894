"""Files that try to make a program read another file, or ask in the network."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def web_server(status=404):
    """A server on this machine: its address, and the list of what it was asked for.

    Its one answer is `status`.
    """
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()


def vrt(source, side, dtype="Float32"):
    """A GDAL raster that shows another, of `side` x `side` pixels."""
    return (
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32618</SRS>'
        "<GeoTransform>500000,10,0,800000,0,-10</GeoTransform>"
        f'<VRTRasterBand dataType="{dtype}" band="1"><SimpleSource>'
        f"<SourceFilename>{source}</SourceFilename><SourceBand>1</SourceBand>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def wms(url, side):
    """A GDAL raster that is fetched from a server."""
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{x}}/${{y}}</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>500000</UpperLeftX><UpperLeftY>800000</UpperLeftY>"
        f"<LowerRightX>{500000 + 10 * side}</LowerRightX>"
        f"<LowerRightY>{800000 - 10 * side}</LowerRightY>"
        f"<SizeX>{side}</SizeX><SizeY>{side}</SizeY></DataWindow>"
        "<Projection>EPSG:32618</Projection><BandsCount>1</BandsCount>"
        "<DataType>Float32</DataType></GDAL_WMS>"
    )


def ogr_vrt(source):
    """A vector file that shows another."""
    return (
        "<OGRVRTDataSource><OGRVRTLayer name='secret'>"
        f"<SrcDataSource>{source}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"
    )
